FROM rust:1.95-bookworm AS build
WORKDIR /src

# The dependencies alone, behind an empty crate: this layer is built again only when Cargo.toml or
# Cargo.lock changes. Benchmarks and tests are not built, but the manifest names files of theirs.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src benches tests/observability \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs benches/gate.rs benches/telemetry.rs tests/observability/main.rs \
    && cargo build --release --locked \
    && rm -r src benches

COPY . .
ARG GIT_COMMIT=unknown
ENV PLINTH_GIT_COMMIT=$GIT_COMMIT
# Cargo compares times, and a checkout can be older than the empty crate built above.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked \
    && install -D target/release/plinth /out/usr/local/bin/plinth

# The runtime image has no shell to make a folder with.
RUN mkdir /out/data


FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/usr /usr
COPY --from=build --chown=65532:65532 /out/data /data

# The embedded default keeps its database in ./data, which is then the volume.
WORKDIR /
VOLUME /data

ENV APP_ENV=production \
    APP_SERVER__BIND=0.0.0.0
EXPOSE 8080
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/plinth"]
CMD ["serve"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/plinth", "healthcheck"]

ARG GIT_COMMIT=unknown
LABEL org.opencontainers.image.title="plinth" \
      org.opencontainers.image.description="An opinionated axum service" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision=$GIT_COMMIT
