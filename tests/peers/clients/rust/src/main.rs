//! Clients of Rust: prints its version, and what `http://ledger/` answers.

use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

const URL: &str = "http://ledger/";
const KEY: (&str, &str) = ("x-overlay-id", "alice");
const LOCK: &str = include_str!("../Cargo.lock");

/// The version of a package, as it is locked.
fn version(name: &str) -> Option<&'static str> {
    let after = LOCK.split_once(&format!("name = \"{name}\"\nversion = \""))?.1;
    Some(after.split_once('"')?.0)
}

async fn reqwest() -> Result<String, Box<dyn Error>> {
    let answer = reqwest::Client::new().get(URL).header(KEY.0, KEY.1).send().await?;
    Ok(answer.text().await?)
}

fn ureq() -> Result<String, Box<dyn Error>> {
    Ok(ureq::get(URL).header(KEY.0, KEY.1).call()?.body_mut().read_to_string()?)
}

async fn hyper() -> Result<String, Box<dyn Error>> {
    let request = http::Request::get(URL).header(KEY.0, KEY.1).body(Empty::<Bytes>::new())?;
    let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await?;
    Ok(String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("which client?")?;
    println!("{}", version(if name == "hyper" { "hyper-util" } else { &name }).ok_or("it is not locked")?);
    let answer = match &*name {
        "reqwest" => reqwest().await?,
        "ureq" => ureq()?,
        _ => hyper().await?,
    };
    print!("{answer}");
    Ok(())
}
