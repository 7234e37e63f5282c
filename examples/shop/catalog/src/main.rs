//! The catalog: what the shop sells, by gRPC. It calls nobody, so there is nothing that it would have to forward.
//!
//! `PORT` is where it listens, `ENVIRONMENT` who it says that it is, `DISCOUNT` what is taken off each price, in per cent.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

mod served {
    include!(concat!(env!("OUT_DIR"), "/shop.Catalog.rs"));
}

/// Which product.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sku {
    /// Its number.
    #[prost(string, tag = "1")]
    pub sku: String,
}

/// A product.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Product {
    /// What it is called.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it costs.
    #[prost(uint32, tag = "2")]
    pub cents: u32,
    /// Who answered.
    #[prost(string, tag = "3")]
    pub by: String,
}

const PRODUCTS: [(&str, &str, u32); 3] = [("tea", "Tea", 450), ("cup", "Cup", 1200), ("pot", "Pot", 3900)];

struct Catalog {
    by: String,
    discount: u32,
}

#[tonic::async_trait]
impl served::catalog_server::Catalog for Catalog {
    async fn find(&self, asked: Request<Sku>) -> Result<Response<Product>, Status> {
        let sku = asked.into_inner().sku;
        let (_, name, cents) = PRODUCTS
            .into_iter()
            .find(|(known, ..)| *known == sku)
            .ok_or_else(|| Status::not_found(format!("there is no product `{sku}`")))?;
        let cents = cents * (100 - self.discount) / 100;
        Ok(Response::new(Product { name: name.to_owned(), cents, by: self.by.clone() }))
    }
}

fn variable<T: std::str::FromStr>(name: &str, otherwise: Option<T>) -> Result<T, String> {
    match std::env::var(name) {
        Ok(value) => value.parse().map_err(|_| format!("{name} cannot be `{value}`")),
        Err(_) => otherwise.ok_or_else(|| format!("{name} is not set")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let environment: String = variable("ENVIRONMENT", None)?;
    let discount: u32 = variable("DISCOUNT", Some(0))?;
    if discount > 100 {
        return Err(format!("DISCOUNT is {discount} per cent, and can be at most 100").into());
    }
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], variable("PORT", None)?))).await?;
    let catalog = Catalog { by: format!("catalog@{environment}"), discount };
    Server::builder()
        .add_service(served::catalog_server::CatalogServer::new(catalog))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}
