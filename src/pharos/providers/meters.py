"""What calls of models are counted as, under the names that dashboards ask for."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from pharos.infra.metrics import REGISTRY, SECONDS

CALL_SECONDS = Histogram(
    "pharos_llm_call_duration_seconds",
    "Seconds from a call of a model to the end of its answer; `method` is what it was for.",
    ["provider", "model", "method"],
    buckets=SECONDS,
    registry=REGISTRY,
)
LATENCY = Histogram(
    "rag_llm_latency_seconds",
    "The same by how it ended.",
    ["status", "model"],
    buckets=SECONDS,
    registry=REGISTRY,
)
FIRST_TOKEN_SECONDS = Histogram(
    "pharos_llm_first_token_seconds",
    "Seconds from a call of a model to its first word.",
    ["provider", "model"],
    buckets=SECONDS,
    registry=REGISTRY,
)
CALLS = Counter(
    "pharos_llm_calls_total",
    "Calls of models by how they ended: ok, stopped, or the code of an error.",
    ["provider", "model", "status"],
    registry=REGISTRY,
)
TOKENS = Counter(
    "pharos_llm_tokens_total",
    "Tokens of calls, by type: prompt or completion.",
    ["provider", "model", "type"],
    registry=REGISTRY,
)
COST = Counter(
    "pharos_llm_cost_usd_total",
    "What calls cost in dollars, where the price is known.",
    ["provider", "model"],
    registry=REGISTRY,
)
BREAKER_STATE = Gauge(
    "rag_circuit_breaker_state",
    "State of a provider's breaker: 0 closed, 1 open, 2 half open.",
    ["name"],
    registry=REGISTRY,
)
BREAKER_TRANSITIONS = Counter(
    "rag_circuit_breaker_transitions_total",
    "Changes of a breaker's state that this process made.",
    ["name", "from_state", "to_state"],
    registry=REGISTRY,
)
REQUESTS_LEFT = Gauge(
    "rag_rate_limit_remaining",
    "Requests a provider's budget has left in its window.",
    ["provider", "window"],
    registry=REGISTRY,
)
