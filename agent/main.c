/*
 * main.c - cbagent: starts the modules in order, stops them in reverse
 *
 * SPDX-License-Identifier: ISC
 *
 * Command line and signals; what the agent does is in the modules.
 */
#include <config.h>

#include <errno.h>
#include <event2/event.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/config.h"
#include "agent/counts.h"
#include "agent/database.h"
#include "agent/fleet.h"
#include "agent/listener.h"
#include "agent/log.h"
#include "agent/metrics.h"
#include "agent/mirror.h"
#include "agent/notify.h"
#include "agent/outbox.h"
#include "agent/query.h"
#include "agent/recovery.h"
#include "agent/segment_writer.h"
#include "agent/snapshot.h"
#include "agent/subscription.h"
#include "agent/writer.h"

#define EXIT_USAGE 2
#define STOP_AFTER 5 /* seconds for what is under way when the agent is told to stop */
#define MESSAGE    4096

struct program {
	struct agent agent;
	const char *config_path;
	struct event *terminate;
	struct event *interrupt;
	struct event *reload;
	struct event *deadline;
	bool stopping;
	bool forced; /* without waiting for what is under way */
};

static void usage(FILE *file)
{
	fprintf(file,
		"usage: cbagent [--config FILE] [--check]\n"
		"       cbagent --help | --version\n"
		"\n"
		"Mirrors the circuit breakers of a Postgres database into shared memory, and "
		"takes\n"
		"what is to be written there over a Unix socket.\n"
		"\n"
		"  -c, --config FILE  the configuration (default: %s)\n"
		"  -t, --check        only read the configuration; exit 0 if it is right, else 1\n"
		"  -V, --version      print the version\n"
		"  -h, --help         print this\n"
		"\n"
		"See cbagent(8) and cbagent.conf(5).\n",
		CONFIG_DEFAULT_PATH);
}

/* One event for each mistake: a log line is one line. */
static void log_lines(const char *event, const char *hint, char *message)
{
	char *rest = message, *line;

	while ((line = strsep(&rest, "\n")) != NULL)
		log_problem(LOG_LEVEL_ERROR, event, hint, "reason=%s", LOG_VALUE(line));
}

/* ---- SIGHUP ---- */

static void need_restart(bool changed, const char *key)
{
	if (changed)
		log_problem(LOG_LEVEL_WARNING, "restart_needed",
			    "restart the agent, readers go on meanwhile", "key=%s", key);
}

static void tell_what_needs_restart(const struct config *was, const struct config *now)
{
	need_restart(strcmp(was->segment_name, now->segment_name) != 0, "segment.name");
	need_restart(was->segment_capacity != now->segment_capacity, "segment.capacity");
	need_restart(was->segment_mode != now->segment_mode, "segment.mode");
	need_restart(was->segment_group != now->segment_group, "segment.group");
	need_restart(strcmp(was->snapshot, now->snapshot) != 0, "segment.snapshot");
	need_restart(strcmp(was->socket_path, now->socket_path) != 0, "socket.path");
	need_restart(was->socket_mode != now->socket_mode, "socket.mode");
	need_restart(was->socket_group != now->socket_group, "socket.group");
	need_restart(was->admin_group != now->admin_group, "socket.admin_group");
	need_restart(strcmp(was->metrics_listen, now->metrics_listen) != 0, "metrics.listen");
	need_restart(strcmp(was->instance, now->instance) != 0, "agent.instance");
}

static void swap(char **a, char **b)
{
	char *kept = *a;

	*a = *b;
	*b = kept;
}

static bool same(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* The files that it names are read anew in any case. */
static bool swap_alertmanager(struct config *now, struct config *read)
{
	const bool changed = !same(now->alertmanager_url, read->alertmanager_url) ||
			     !same(now->bearer_token_file, read->bearer_token_file) ||
			     !same(now->basic_auth_file, read->basic_auth_file) ||
			     !same(now->ca_file, read->ca_file) ||
			     !same(now->runbook_url, read->runbook_url) ||
			     now->resend_interval != read->resend_interval;

	swap(&now->alertmanager_url, &read->alertmanager_url);
	swap(&now->bearer_token_file, &read->bearer_token_file);
	swap(&now->basic_auth_file, &read->basic_auth_file);
	swap(&now->ca_file, &read->ca_file);
	swap(&now->runbook_url, &read->runbook_url);
	now->resend_interval = read->resend_interval;
	return changed;
}

static void on_reload(evutil_socket_t fd, short what, void *arg)
{
	struct program *program = arg;
	struct config *now = program->agent.config, *read;
	char message[MESSAGE];
	bool reconnect, alertmanager;

	(void)fd;
	(void)what;
	if (program->stopping)
		return;
	notify_reloading(program->agent.notify);
	if (config_load(program->config_path, &read, message, sizeof(message)) != 0) {
		log_lines("reload_failed", "nothing has changed: mend the file, then reload again",
			  message);
		notify_ready(program->agent.notify);
		return;
	}
	tell_what_needs_restart(now, read);
	reconnect = strcmp(now->conninfo, read->conninfo) != 0;
	/* The rest stays as it is in force, so that the next reload compares with that. */
	swap(&now->conninfo, &read->conninfo);
	alertmanager = swap_alertmanager(now, read);
	now->log_level = read->log_level;
	now->metrics_breakers = read->metrics_breakers;
	log_set_level(now->log_level);
	config_free(read);
	log_event(LOG_LEVEL_INFO, "reloaded", "conninfo=%s alertmanager=%s",
		  reconnect ? "changed" : "same", alertmanager ? "changed" : "same");
	outbox_reconfigure(program->agent.outbox);
	if (reconnect)
		database_reconfigure(program->agent.database);
	notify_ready(program->agent.notify);
}

/* ---- the end ---- */

static void on_stopped(void *arg)
{
	struct program *program = arg;

	event_base_loopbreak(program->agent.base);
}

/* Nobody asks any more. */
static void on_drained(void *arg)
{
	struct program *program = arg;

	fleet_leave(program->agent.fleet, on_stopped, program);
}

static void on_deadline(evutil_socket_t fd, short what, void *arg)
{
	struct program *program = arg;

	(void)fd;
	(void)what;
	if (program->forced) {
		on_stopped(program);
		return;
	}
	log_problem(LOG_LEVEL_WARNING, "stop_forced",
		    "nothing to do here: clients hear what is known of their requests", "reason=%s",
		    LOG_VALUE("requests are not answered after 5 s"));
	program->forced = true;
	/* They are answered as well as can be, and the answers have a moment to go out. */
	database_stop(program->agent.database);
	writer_stop(program->agent.writer);
	queries_stop(program->agent.queries);
	fleet_stop(program->agent.fleet);
	event_add(program->deadline, &(struct timeval){.tv_sec = 1});
}

static void on_terminate(evutil_socket_t signal_number, short what, void *arg)
{
	struct program *program = arg;

	(void)what;
	if (program->stopping) {
		on_stopped(program);
		return;
	}
	program->stopping = true;
	notify_stopping(program->agent.notify);
	log_event(LOG_LEVEL_INFO, "stopping", "signal=%s", strsignal((int)signal_number));
	event_add(program->deadline, &(struct timeval){.tv_sec = STOP_AFTER});
	outbox_stop(program->agent.outbox);
	listener_stop(program->agent.listener, on_drained, program);
}

/* The reverse of start(); but the connections go first, so that the others know what was lost. */
static void stop(struct program *program)
{
	struct agent *agent = &program->agent;
	struct event *const events[] = {program->terminate, program->interrupt, program->reload,
					program->deadline};

	metrics_free(agent->metrics);
	snapshot_finish(agent->snapshot);
	database_stop(agent->database);
	writer_free(agent->writer);
	fleet_free(agent->fleet);
	queries_free(agent->queries);
	listener_free(agent->listener);
	subscriptions_free(agent->subscriptions);
	database_free(agent->database);
	outbox_free(agent->outbox);
	recovery_free(agent->recovery);
	counts_free(agent->counts);
	mirror_free(agent->mirror);
	snapshot_free(agent->snapshot);
	segment_writer_close(agent->segment);
	notify_free(agent->notify);
	for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++) {
		if (events[i] != NULL)
			event_free(events[i]);
	}
	if (agent->base != NULL)
		event_base_free(agent->base);
	config_free(agent->config);
	libevent_global_shutdown();
}

/* ---- the start ---- */

static struct event_base *new_base(void)
{
	struct event_config *options = event_config_new();
	struct event_base *base = NULL;

	if (options == NULL)
		return NULL;
	/* A TTL ends at its instant, not at the next tick of a coarse clock. */
	if (event_config_set_flag(options, EVENT_BASE_FLAG_PRECISE_TIMER) == 0)
		base = event_base_new_with_config(options);
	event_config_free(options);
	return base;
}

static int start_loop(struct program *program)
{
	struct event_base *base = new_base();

	program->agent.base = base;
	if (base == NULL)
		return -1;
	program->terminate = evsignal_new(base, SIGTERM, on_terminate, program);
	program->interrupt = evsignal_new(base, SIGINT, on_terminate, program);
	program->reload = evsignal_new(base, SIGHUP, on_reload, program);
	program->deadline = evtimer_new(base, on_deadline, program);
	if (program->terminate == NULL || program->interrupt == NULL || program->reload == NULL ||
	    program->deadline == NULL)
		return -1;
	return event_add(program->terminate, NULL) | event_add(program->interrupt, NULL) |
	       event_add(program->reload, NULL);
}

static int start_segment(struct agent *agent, char *message, size_t size)
{
	const struct segment_options options = {
		.name = agent->config->segment_name,
		.capacity = agent->config->segment_capacity,
		.mode = agent->config->segment_mode,
		.group = agent->config->segment_group,
		.fill = snapshot_restore,
		.fill_arg = agent->snapshot,
	};

	return segment_writer_open(&options, &agent->segment, message, size);
}

static int start_listener(struct agent *agent, char *message, size_t size)
{
	const struct listener_options options = {
		.path = agent->config->socket_path,
		.mode = agent->config->socket_mode,
		.group = agent->config->socket_group,
		.admin_group = agent->config->admin_group,
	};

	return listener_new(agent, &options, &agent->listener, message, size);
}

static int start(struct program *program)
{
	struct agent *agent = &program->agent;
	char message[MESSAGE] = "";

	if (start_loop(program) != 0) {
		log_problem(LOG_LEVEL_ERROR, "start_failed", "give the agent more memory or files",
			    "reason=%s", LOG_VALUE(strerror(errno)));
		return -1;
	}
	agent->notify = notify_new(agent->base);
	agent->snapshot = snapshot_new(agent);
	if (start_segment(agent, message, sizeof(message)) != 0)
		goto failed;
	agent->mirror = mirror_new(agent);
	agent->counts = counts_new(agent);
	agent->recovery = recovery_new(agent);
	agent->outbox = outbox_new(agent);
	agent->queries = queries_new(agent);
	agent->subscriptions = subscriptions_new(agent->base, agent->segment);
	agent->fleet = fleet_new(agent);
	if (writer_new(agent, &agent->writer) != 0)
		goto failed;
	agent->database = database_new(agent);
	if (start_listener(agent, message, sizeof(message)) != 0 ||
	    metrics_new(agent, &agent->metrics, message, sizeof(message)) != 0)
		goto failed;
	snapshot_start(agent->snapshot);
	log_event(LOG_LEVEL_INFO, "started",
		  "version=%s instance=%s socket=%s segment=%s capacity=%u breakers=%u",
		  PACKAGE_VERSION, agent->config->instance, LOG_VALUE(agent->config->socket_path),
		  LOG_VALUE(agent->config->segment_name), agent->config->segment_capacity,
		  segment_writer_breakers(agent->segment));
	notify_ready(agent->notify);
	return 0;

failed:
	log_lines("start_failed", "mend what the reason says, then start the agent", message);
	return -1;
}

static int run(struct program *program)
{
	int rc = start(program);

	if (rc == 0)
		rc = event_base_dispatch(program->agent.base);
	stop(program);
	if (rc == 0)
		log_event(LOG_LEVEL_INFO, "stopped", "pid=%d", (int)getpid());
	return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"config", required_argument, NULL, 'c'},
		{"check", no_argument, NULL, 't'},
		{"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	struct program program = {.config_path = CONFIG_DEFAULT_PATH};
	char message[MESSAGE];
	bool check = false;
	int option;

	while ((option = getopt_long(argc, argv, "c:tVh", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			program.config_path = optarg;
			break;
		case 't':
			check = true;
			break;
		case 'V':
			puts("cbagent " PACKAGE_VERSION);
			return EXIT_SUCCESS;
		case 'h':
			usage(stdout);
			return EXIT_SUCCESS;
		default:
			usage(stderr);
			return EXIT_USAGE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "cbagent: unexpected argument '%s'\n", argv[optind]);
		usage(stderr);
		return EXIT_USAGE;
	}
	if (config_load(program.config_path, &program.agent.config, message, sizeof(message)) !=
	    0) {
		fprintf(stderr, "%s\n", message);
		return EXIT_FAILURE;
	}
	if (check) {
		config_free(program.agent.config);
		return EXIT_SUCCESS;
	}
	signal(SIGPIPE, SIG_IGN);
	log_set_level(program.agent.config->log_level);
	return run(&program);
}
