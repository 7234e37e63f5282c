// A client of the catalog, from its own protocol file.
"use strict";
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const PROTOCOL = process.env.CATALOG_PROTO ?? path.join(__dirname, "../catalog/catalog.proto");
const { shop } = grpc.loadPackageDefinition(loader.loadSync(PROTOCOL));
const catalog = new shop.Catalog("catalog:80", grpc.credentials.createInsecure());

exports.find = (sku) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    catalog.Find({ sku }, { deadline }, (error, product) => (error ? reject(error) : resolve(product)));
  });
