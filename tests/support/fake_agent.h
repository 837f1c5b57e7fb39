/*
 * fake_agent.h - a server that misbehaves on command
 *
 * SPDX-License-Identifier: ISC
 *
 * The server is a thread of the test program. What it is to do with each message stands in a script, and what it
 * got is kept; so every place at which a connection can be lost can be tried.
 */
#ifndef TESTS_SUPPORT_FAKE_AGENT_H
#define TESTS_SUPPORT_FAKE_AGENT_H

#include <CUnit/CUnit.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define CONNECTIONS 64
#define MESSAGES    4096

enum action {
	REPLY,           /* the text */
	REPLY_AND_CLOSE, /* the text, then the end of the connection */
	CLOSE,           /* read, and close without a word */
	SILENCE,         /* read, and nothing */
	HOLD,            /* read; the text goes out before what is said to the next message */
	REPLY_TWICE,     /* the text, and a moment later something else that nobody asked for */
	GREET_AND_CLOSE, /* at the door: the text, without reading anything */
	CLOSE_AT_DOOR,   /* at the door: nothing */
};

struct step {
	enum action action;
	const char *text;
};

struct connection {
	int fd;
	char *text;
	size_t used;
	const char *held;
};

struct server {
	char directory[64], path[96];
	char segment
		[64]; /* a name under which an empty file stands, so that no client asks the server for it */
	int listener, stop[2];
	pthread_t thread;
	const struct step *script; /* the last step stays */
	int steps;
	_Atomic int step, accepted, received;
	_Atomic int served; /* messages with which all is done that the script says */
	char *messages[MESSAGES];
	struct connection connections[CONNECTIONS];
};

extern struct server server;

/* The directory and path of the socket and the segment's name, before anything else; and their removal. false: no directory. */
bool server_set_up(void);
void server_tear_down(void);
/* All between the two: the suite's tests. What main() returns. */
int server_run_tests(const char *suite, const CU_TestInfo *tests);

/* Listens, and does what the script says until server_end(). The script must stay. */
void server_begin(const struct step *script, int steps);
void server_end(void);

#define SERVE(...)                                         \
	static const struct step script[] = {__VA_ARGS__}; \
	server_begin(script, (int)(sizeof(script) / sizeof(*script)))

/* A descriptor of this process that is connected to the server's path, or -1. */
int server_peer(void);

/* A listening socket, or -1. */
int listen_at(const char *path);

/* ---- answers ---- */

#define NO_INCIDENT "{\"parameters\":{\"incident\":null}}"
#define CHANGED     "{\"parameters\":{\"changed\":true}}"
#define UUID        "0e7a8b4e-92f6-4e2a-8a43-2f9c5c3c1d11"
#define INCIDENT_WITH(details)                                                           \
	"{\"id\":\"" UUID "\",\"breaker\":\"b\",\"timestamp\":\"2026-11-23T21:00:00Z\"," \
	"\"reason\":\"r\",\"severity\":\"P1\",\"drift_score\":0.25,\"sample_count\":7,"  \
	"\"details\":" details ",\"resolved\":false,\"resolved_at\":null,"               \
	"\"resolved_by\":null,\"resolution_notes\":null,\"alert_sent\":false,"           \
	"\"alert_sent_at\":null}"
#define INCIDENT INCIDENT_WITH("{\"a\":[1,\"x\"]}")

#endif /* TESTS_SUPPORT_FAKE_AGENT_H */
