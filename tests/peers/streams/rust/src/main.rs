//! tonic and tokio-tungstenite, as server and as client. Calls are generic: messages are bytes.
//!
//! ```text
//! peer serve NAME GRPC_PORT WEBSOCKET_PORT
//! peer grpc TARGET AUTHORITY
//! peer websockets HOST:PORT AUTHORITY
//! ```

mod echo;
mod grpc;
mod websockets;

/// What fails, in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A key, and who serves it.
const KEYS: [(&str, &str); 3] = [("alice", "alice"), ("nobody", "base"), ("bob", "base")];

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", name, grpc, websocket] => {
            let sockets = websockets::serve(name.to_owned(), websocket.parse()?).await?;
            let calls = echo::serve(name.to_owned(), grpc.parse()?).await?;
            println!("ready");
            tokio::join!(sockets, calls);
            Ok(())
        }
        ["grpc", target, authority] => grpc::check(target, authority).await,
        ["websockets", address, authority] => websockets::check(address, authority).await,
        _ => Err("serve, grpc or websockets".into()),
    }
}
