/*
 * metrics.h - what the agent tells Prometheus, and whoever asks whether it lives
 *
 * SPDX-License-Identifier: ISC
 *
 * /metrics, /healthz and /readyz; cbshm-metrics(7) has the list. Reads the counters that the modules keep, and changes
 * nothing. One scrape takes a bounded time of the loop at once, however many breakers there are.
 */
#ifndef AGENT_METRICS_H
#define AGENT_METRICS_H

#include <stddef.h>

struct agent;
struct metrics;

#define METRICS_BREAKERS_DEFAULT 10000u

/*
 * Serves at agent->config->metrics_listen; *metrics is NULL if that is empty. All other modules must be there and stay.
 * Returns 0 or -errno; then *message says what is wrong and what to do.
 */
int metrics_new(struct agent *agent, struct metrics **metrics, char *message, size_t message_size);

/* NULL is fine. */
void metrics_free(struct metrics *metrics);

#endif /* AGENT_METRICS_H */
