# syntax=docker/dockerfile:1
# The image: the binary on Debian's C library, without a shell, as nobody, for a read-only root. Of either architecture:
#   docker buildx build --platform linux/amd64,linux/arm64 .
# What is built is what deploy/build.sh builds anywhere; `--target binary --output out` gives the file alone.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN deploy/build.sh

FROM scratch AS binary
COPY --from=build /src/target/dist/overlane.stripped /overlane

FROM gcr.io/distroless/cc-debian12:nonroot
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="Overlane" \
      org.opencontainers.image.description="Overlay environments over one shared baseline" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=binary /overlane /overlane
COPY LICENSE /LICENSE
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENV OVERLANE_STORE=/etc/overlane/environments
# Gateway, probes and metrics. The admin listener (7481) stays on the container's loopback.
EXPOSE 7480 7482
# Whether it lives; whether it is ready, `/readyz` at 7482 says.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/overlane", "status", "-o", "name"]
# It serves on for 25 s at most after SIGTERM: `docker stop -t 30`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/overlane"]
CMD ["run", "--gateway", "0.0.0.0:7480", "--trust", "none", "--probes", "0.0.0.0:7482"]
