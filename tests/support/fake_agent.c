/*
 * fake_agent.c - a server that misbehaves on command
 *
 * SPDX-License-Identifier: ISC
 */
#include "config.h"

#include "tests/support/fake_agent.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/support/tap.h"

struct server server;

bool server_set_up(void)
{
	strcpy(server.directory, "/tmp/cbshm-test-XXXXXX");
	if (mkdtemp(server.directory) == NULL)
		return false;
	snprintf(server.path, sizeof(server.path), "%s/socket", server.directory);
	snprintf(server.segment, sizeof(server.segment), "/cbshm-test-%d-none", (int)getpid());
	const int fd = shm_open(server.segment, O_RDWR | O_CREAT | O_EXCL, 0600);
	return fd >= 0 && close(fd) == 0;
}

void server_tear_down(void)
{
	rmdir(server.directory);
	shm_unlink(server.segment);
}

static const struct step *current(void)
{
	const int step = server.step;

	return &server.script[step < server.steps ? step : server.steps - 1];
}

static void hang_up(struct connection *connection)
{
	close(connection->fd);
	free(connection->text);
	memset(connection, 0, sizeof(*connection));
	connection->fd = -1;
}

static void say(int fd, const char *text)
{
	size_t left = strlen(text) + 1;

	while (left > 0) {
		const ssize_t n = send(fd, text, left, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		left -= (size_t)n;
	}
}

static void act(struct connection *connection, const char *text)
{
	const struct step *step = current();

	if (server.received < MESSAGES) {
		server.messages[server.received] = strdup(text);
		server.received++;
	}
	server.step++;
	if (connection->held != NULL)
		say(connection->fd, connection->held);
	connection->held = step->action == HOLD ? step->text : NULL;
	if (step->action == REPLY || step->action == REPLY_AND_CLOSE)
		say(connection->fd, step->text);
	if (step->action == REPLY_TWICE) {
		say(connection->fd, step->text);
		poll(NULL, 0, 20);
		say(connection->fd, "{\"error\":\"io.cbshm.Busy\",\"parameters\":{}}");
	}
	if (step->action == CLOSE || step->action == REPLY_AND_CLOSE)
		hang_up(connection);
	server.served++;
}

static void serve(struct connection *connection)
{
	char text[65536], *end;
	const ssize_t n = recv(connection->fd, text, sizeof(text), 0);

	if (n <= 0) {
		hang_up(connection);
		return;
	}
	connection->text = realloc(connection->text, connection->used + (size_t)n);
	memcpy(connection->text + connection->used, text, (size_t)n);
	connection->used += (size_t)n;
	while (connection->used > 0 &&
	       (end = memchr(connection->text, '\0', connection->used)) != NULL) {
		char *message = strdup(connection->text);

		connection->used -= (size_t)(end + 1 - connection->text);
		memmove(connection->text, end + 1, connection->used);
		act(connection, message);
		free(message);
	}
}

static void welcome(void)
{
	const int fd = accept(server.listener, NULL, NULL);
	const struct step *step = current();

	if (fd < 0)
		return;
	server.accepted++;
	if (step->action == GREET_AND_CLOSE || step->action == CLOSE_AT_DOOR) {
		server.step++;
		if (step->action == GREET_AND_CLOSE)
			say(fd, step->text);
		close(fd);
		return;
	}
	for (int i = 0; i < CONNECTIONS; i++) {
		if (server.connections[i].fd < 0) {
			server.connections[i].fd = fd;
			return;
		}
	}
	close(fd);
}

static void *run_server(void *arg)
{
	struct pollfd fds[CONNECTIONS + 2];

	for (;;) {
		for (int i = 0; i < CONNECTIONS; i++)
			fds[i] = (struct pollfd){.fd = server.connections[i].fd, .events = POLLIN};
		fds[CONNECTIONS] = (struct pollfd){.fd = server.listener, .events = POLLIN};
		fds[CONNECTIONS + 1] = (struct pollfd){.fd = server.stop[0], .events = POLLIN};
		poll(fds, CONNECTIONS + 2, -1);
		if (fds[CONNECTIONS + 1].revents)
			return arg;
		for (int i = 0; i < CONNECTIONS; i++) {
			if (fds[i].revents)
				serve(&server.connections[i]);
		}
		if (fds[CONNECTIONS].revents)
			welcome();
	}
}

int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	unlink(path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 64) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

void server_begin(const struct step *script, int steps)
{
	memset(server.messages, 0, sizeof(server.messages));
	server.script = script;
	server.steps = steps;
	server.step = server.accepted = server.received = server.served = 0;
	for (int i = 0; i < CONNECTIONS; i++)
		server.connections[i] = (struct connection){.fd = -1};
	server.listener = listen_at(server.path);
	CU_ASSERT_TRUE_FATAL(server.listener >= 0);
	CU_ASSERT_EQUAL_FATAL(pipe(server.stop), 0);
	CU_ASSERT_EQUAL_FATAL(pthread_create(&server.thread, NULL, run_server, NULL), 0);
}

void server_end(void)
{
	CU_ASSERT_EQUAL(write(server.stop[1], "", 1), 1);
	pthread_join(server.thread, NULL);
	for (int i = 0; i < CONNECTIONS; i++) {
		if (server.connections[i].fd >= 0)
			hang_up(&server.connections[i]);
	}
	for (int i = 0; i < server.received; i++)
		free(server.messages[i]);
	close(server.listener);
	close(server.stop[0]);
	close(server.stop[1]);
	unlink(server.path);
}

int server_peer(void)
{
	struct sockaddr_un address;

	for (int fd = 3; fd < 256; fd++) {
		socklen_t size = sizeof(address);

		if (getpeername(fd, (struct sockaddr *)&address, &size) == 0 &&
		    size > sizeof(sa_family_t) && strcmp(address.sun_path, server.path) == 0)
			return fd;
	}
	return -1;
}

int server_run_tests(const char *suite, const CU_TestInfo *tests)
{
	if (!server_set_up())
		return 1;
	CU_initialize_registry();
	tap_add_suite(suite, tests);
	const int status = tap_run_cunit();

	server_tear_down();
	return status;
}
