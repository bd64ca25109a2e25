# syntax=docker/dockerfile:1
# The image of a replica: the binary, a C library and the certificates of public authorities. No shell, no package
# manager; it runs as another user than root and writes no file, so its root file system may be read-only.

FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
# The caches outlast a build where the builder keeps them; the binary is copied out, because a cache is no layer.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    cargo build --release --locked --bin hooklane \
    && install -D -m 0755 target/release/hooklane /out/hooklane

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="hooklane" \
      org.opencontainers.image.description="Webhook delivery over gRPC and PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/hooklane /usr/local/bin/hooklane
# Its loopback is nobody else's. Who may call is the business of HOOKLANE_AUTH.
ENV HOOKLANE_GRPC_ADDR=0.0.0.0:50051 \
    HOOKLANE_OPS_ADDR=0.0.0.0:9464
EXPOSE 50051 9464
# By number: Kubernetes cannot tell from a name that it is not root's.
USER 65532:65532
# What docker stop sends anyway; the drain takes up to shutdown.grace and some seconds, so give it longer than its 10 s.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["/usr/local/bin/hooklane", "health"]
ENTRYPOINT ["/usr/local/bin/hooklane"]
CMD ["serve"]
