/*
 * fuzz_session.c - throws bytes at a session and checks that what comes back is Varlink
 *
 * SPDX-License-Identifier: ISC
 *
 * A libFuzzer target. In `make check` it runs under standalone.c; with libFuzzer:
 *
 *	./configure CC=clang CFLAGS='-g -O1 -fsanitize=fuzzer-no-link,address,undefined'
 *	make tests/fuzz/fuzz_session_libfuzzer
 *	tests/fuzz/fuzz_session_libfuzzer -max_len=200000 /tmp/new-inputs tests/fuzz/corpus
 *
 * The first byte of an input says who the peer is and how the writer behaves, the rest is what the
 * peer sends. Whatever it is: the session ends, every reply is a JSON object with parameters, and
 * no request breaks the rules that the writer relies on.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <event2/event.h>

#include "agent/arguments.h"
#include "agent/log.h"
#include "agent/segment_writer.h"
#include "agent/session.h"
#include "agent/subscription.h"
#include "agent/writer.h"
#include "libcbshm/name.h"
#include "tests/fuzz/target.h"
#include "tests/support/same_report.h"

const char fuzz_corpus[] = "tests/fuzz/corpus";

#define QUEUE_MAX 2048
#define REPLY_MAX (4 * MESSAGE_SIZE_MAX)

/* Bits of the first byte; the lowest two are the access. */
#define MODE_REVERSED 0x04 /* the writer answers the newest first */
#define MODE_LATE     0x08 /* and only when the peer has sent everything */
#define MODE_STATUS   0xf0 /* with this status, if it is one */

struct writer {
	struct request *queue[QUEUE_MAX];
	unsigned count;
};

struct segment_writer {
	int unused;
};

struct harness {
	struct event_base *base;
	struct writer writer;
	struct segment_writer segment;
	struct subscriptions *subscriptions;
	struct session_counters counters;
	struct session *session; /* NULL: ended */
	uint8_t mode;
	int fd;
	char reply[REPLY_MAX];
	size_t reply_size;
};

#define REQUIRE(condition)                                                                      \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

uint32_t segment_writer_slots(const struct segment_writer *writer)
{
	(void)writer;
	return 150;
}

bool segment_writer_read(const struct segment_writer *writer, uint32_t slot,
			 char name[CBSHM_NAME_ROOM], struct cbshm_detail *detail)
{
	(void)writer;
	memset(detail, 0, sizeof(*detail));
	detail->opened_at = INT64_MAX - slot;
	detail->updated_at = INT64_MIN + 1;
	detail->reason_length = CBSHM_DETAIL_REASON_BYTES;
	memset(detail->disabled_reason, '"', sizeof(detail->disabled_reason));
	snprintf(name, CBSHM_NAME_ROOM, "breaker-%u", slot);
	return slot % 3 != 0;
}

bool segment_writer_find(const struct segment_writer *writer, const char *name, uint32_t *slot)
{
	char found[CBSHM_NAME_ROOM];
	struct cbshm_detail detail;

	for (*slot = 0; *slot < segment_writer_slots(writer); (*slot)++) {
		if (segment_writer_read(writer, *slot, found, &detail) && strcmp(found, name) == 0)
			return true;
	}
	return false;
}

void segment_writer_watch(struct segment_writer *writer, segment_writer_watcher *changed, void *arg)
{
	(void)writer;
	(void)changed;
	(void)arg;
}

const char *segment_writer_name(const struct segment_writer *writer)
{
	(void)writer;
	return "/cbshm";
}

int segment_writer_open_reader(const struct segment_writer *writer)
{
	(void)writer;
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static bool is_object_text(const char *text)
{
	cJSON *value = cJSON_Parse(text);
	bool is = cJSON_IsObject(value);

	cJSON_Delete(value);
	return is;
}

/* What the writer may take for granted. */
static void check_request(const struct request *request)
{
	REQUIRE(request->name == NULL || name_length(request->name) > 0);
	REQUIRE(request->name != NULL || request->kind == REQUEST_SET_POLICY ||
		request->kind == REQUEST_GET_INCIDENTS || request->kind == REQUEST_GET_AGENTS ||
		request->kind >= REQUEST_WAIT_FLEET);
	REQUIRE(request->score >= 0 && request->score <= 1);
	REQUIRE(request->count >= 0 && request->count <= ARGUMENT_COUNT_MAX);
	REQUIRE(request->details == NULL ||
		(strlen(request->details) <= 32768 && is_object_text(request->details)));
	REQUIRE(request->reason == NULL ||
		(strlen(request->reason) >= 1 && strlen(request->reason) <= 1024 &&
		 utf8_valid(request->reason, strlen(request->reason))));
	REQUIRE(request->by == NULL || name_length(request->by) > 0);
	REQUIRE(request->request_id == NULL || strlen(request->request_id) == 36);
	REQUIRE(request->until == NULL || request->ttl_us == 0);
	REQUIRE(request->limit >= 1 && request->limit <= 1000);
	REQUIRE((request->policy_set & request->policy_clear) == 0);
	REQUIRE(request->deadline > 0);
}

void writer_submit(struct writer *writer, struct request *request)
{
	check_request(request);
	REQUIRE(writer->count < QUEUE_MAX);
	writer->queue[writer->count++] = request;
}

static void answer_all(struct harness *harness)
{
	struct writer *writer = &harness->writer;
	struct answer answer = {.status = (harness->mode & MODE_STATUS) >> 4,
				.field = "field",
				.message = "m\n\"",
				.sqlstate = "XX000",
				.changed = true,
				.json = "{\"id\": 1}"};

	if (answer.status > ANSWER_DATABASE_ERROR)
		answer = (struct answer){.status = ANSWER_OK};
	while (writer->count > 0) {
		struct request *request;

		if ((harness->mode & MODE_REVERSED) != 0) {
			request = writer->queue[--writer->count];
		} else {
			request = writer->queue[0];
			memmove(writer->queue, writer->queue + 1,
				--writer->count * sizeof(*writer->queue));
		}
		request->done(request, &answer);
	}
}

static void check_reply(const char *text)
{
	cJSON *reply = cJSON_Parse(text);
	const cJSON *error = cJSON_GetObjectItemCaseSensitive(reply, "error");

	REQUIRE(cJSON_IsObject(reply));
	REQUIRE(cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(reply, "parameters")));
	REQUIRE(error == NULL || cJSON_IsString(error));
	cJSON_Delete(reply);
}

/* Reads what is there; false at the end of the stream. */
static bool take_replies(struct harness *harness)
{
	char bytes[65536];
	ssize_t got;

	while ((got = recv(harness->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0) {
		for (ssize_t i = 0; i < got; i++) {
			REQUIRE(harness->reply_size < REPLY_MAX);
			harness->reply[harness->reply_size++] = bytes[i];
			if (bytes[i] == '\0') {
				check_reply(harness->reply);
				harness->reply_size = 0;
			}
		}
	}
	return got < 0 && errno == EAGAIN;
}

static void on_ended(void *arg, struct session *session)
{
	struct harness *harness = arg;

	REQUIRE(session == harness->session);
	harness->session = NULL;
}

static void turn(struct harness *harness)
{
	event_base_loop(harness->base, EVLOOP_NONBLOCK);
	if ((harness->mode & MODE_LATE) == 0)
		answer_all(harness);
}

/* Reports that are read without a tree are read as all others are. */
static void check_reports(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	size_t length;

	REQUIRE(text != NULL);
	memcpy(text, data, size);
	text[size] = '\0';
	for (const char *p = text, *end = text + size; p < end; p += length + 1) {
		length = strlen(p);
		REQUIRE(same_report(p, length) != REPORT_DIFFERS);
	}
	free(text);
}

static void converse(struct harness *harness, const uint8_t *data, size_t size)
{
	while (size > 0 && harness->session != NULL) {
		ssize_t sent = send(harness->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (sent < 0 && errno != EAGAIN)
			break;
		if (sent > 0) {
			data += sent;
			size -= (size_t)sent;
		} else if ((harness->mode & MODE_LATE) != 0) {
			/* it is paused and waits for answers */
			answer_all(harness);
		}
		turn(harness);
		take_replies(harness);
	}
	shutdown(harness->fd, SHUT_WR);
	for (int turns = 0; harness->session != NULL; turns++) {
		REQUIRE(turns < 100000);
		event_base_loop(harness->base, EVLOOP_NONBLOCK);
		answer_all(harness);
		take_replies(harness);
	}
	take_replies(harness);
	REQUIRE(harness->reply_size == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct harness *harness;
	struct peer peer = {.uid = 1234, .user = "someone"};
	struct session_host host;
	int pair[2];

	if (size == 0)
		return 0;
	if (harness == NULL) {
		signal(SIGPIPE, SIG_IGN);
		log_set_level(LOG_LEVEL_ERROR);
		harness = calloc(1, sizeof(*harness));
		REQUIRE(harness != NULL);
		harness->base = event_base_new();
	}
	harness->mode = data[0];
	harness->reply_size = 0;
	harness->subscriptions = subscriptions_new(harness->base, &harness->segment);
	host = (struct session_host){.event_base = harness->base,
				     .subscriptions = harness->subscriptions,
				     .writer = &harness->writer,
				     .segment = &harness->segment,
				     .counters = &harness->counters,
				     .ended = on_ended,
				     .arg = harness};
	REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
	harness->fd = pair[0];
	REQUIRE(session_new(&host, pair[1], 1, &peer, (enum access)((data[0] & 3) % 3),
			    &harness->session) == 0);
	check_reports(data + 1, size - 1);
	converse(harness, data + 1, size - 1);
	answer_all(harness);
	subscriptions_free(harness->subscriptions);
	close(pair[0]);
	return 0;
}
