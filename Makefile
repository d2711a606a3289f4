# Kept to GNU make 3.81, which is what macOS has.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
SCRIPTS = .ci/run tests/support/services.sh

.DEFAULT_GOAL := help
.PHONY: help run test test-observability bench check check-observability fmt openapi docker-up docker-down clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Run the service; the first time, this builds it
	cargo run

test: ## Run every test, with a PostgreSQL and a Redis of its own (ARGS=name for some)
	tests/support/services.sh run cargo test --no-fail-fast $(ARGS)

test-observability: check-observability ## Test the status page in Chromium, and metrics with promtool
	@command -v chromedriver >/dev/null || { echo "chromedriver is not installed: it comes with Chromium" >&2; exit 1; }
	cargo test --test observability

bench: ## Measure what limits, authentication and telemetry cost (builds a release)
	tests/support/services.sh run cargo bench

check: ## Format, lints and docs, warnings being errors
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --test observability -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
	else echo "shellcheck is not installed: the scripts were not checked"; fi

check-observability: ## Check the Prometheus configuration, rules and their tests with promtool
	@command -v promtool >/dev/null || { echo "promtool is not installed: it comes with Prometheus" >&2; exit 1; }
	cd deploy/observability && promtool check config prometheus.yml && promtool check rules rules/*.yml \
		&& promtool test rules tests/*.yml

fmt: ## Format the code
	cargo fmt

openapi: ## Write openapi.json again, from the code
	@trap 'rm -f openapi.json.new' EXIT INT TERM; \
	cargo run -- openapi >openapi.json.new && mv openapi.json.new openapi.json

docker-up: ## Build the image, and run it on PostgreSQL and Redis in Docker
	GIT_COMMIT=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) $(COMPOSE) up -d --build
	@for _ in $$(seq 30); do \
		if $(COMPOSE) exec -T app /usr/local/bin/plinth healthcheck >/dev/null 2>&1; then \
			echo "ready: http://$$($(COMPOSE) port app 8080)/docs"; \
			echo "an API key: $(COMPOSE) exec app plinth key create --name me --scopes '*'"; exit 0; \
		fi; \
		sleep 1; \
	done; \
	$(COMPOSE) logs --tail=20 app; echo "not ready after 30 seconds" >&2; exit 1

docker-down: ## Stop it; the database keeps its data
	$(COMPOSE) --profile observability down

clean: ## Remove what was built (target/); data/ stays
	cargo clean
