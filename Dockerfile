# Two stages: the build needs a compiler. The service needs only a C library.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 task-history
COPY --from=build /src/target/release/task-history /usr/local/bin/task-history
USER task-history
ENV TASK_HISTORY_LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=40s CMD ["task-history", "healthcheck"]
ENTRYPOINT ["task-history"]
