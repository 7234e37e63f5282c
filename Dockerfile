# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked -p overlane \
 && strip target/dist/overlane

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/dist/overlane /overlane
COPY LICENSE /LICENSE
ENV OVERLANE_STORE=/etc/overlane/environments
# Gateway, probes and metrics. The admin listener (7481) stays on the container's loopback.
EXPOSE 7480 7482
ENTRYPOINT ["/overlane"]
CMD ["run", "--gateway", "0.0.0.0:7480", "--trust", "none", "--probes", "0.0.0.0:7482"]
