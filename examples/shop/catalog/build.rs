//! The service of `catalog.proto`, without a protoc.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let find = Method::builder()
        .name("find")
        .route_name("Find")
        .input_type("crate::Sku")
        .output_type("crate::Product")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let catalog = Service::builder().name("Catalog").package("shop").method(find).build();
    Builder::new().build_client(false).compile(&[catalog]);
}
