/*
 * test_session.c - the socket side of the agent, with a writer and a segment made of cardboard
 *
 * SPDX-License-Identifier: ISC
 *
 * Framing, dispatch, order, limits, authorization and the socket's name. What the database makes of a request
 * is tested elsewhere.
 */
#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <event2/event.h>

#include "agent/agent.h"
#include "agent/handout.h"
#include "agent/listener.h"
#include "agent/log.h"
#include "agent/segment_writer.h"
#include "agent/session.h"
#include "agent/subscription.h"
#include "agent/writer.h"
#include "tests/support/child.h"
#include "tests/support/same_report.h"
#include "tests/support/tap.h"

#define QUEUE_MAX   4096
#define WAIT_MS     5000
#define OTHER_UID   65534
#define GROUP       54321
#define ADMIN_GROUP 54322

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* ---- the cardboard ---------------------------------------------------------------------- */

struct writer {
	struct request *queue[QUEUE_MAX];
	unsigned count;
};

void writer_submit(struct writer *writer, struct request *request)
{
	if (writer->count == QUEUE_MAX)
		abort();
	writer->queue[writer->count++] = request;
}

struct segment_writer {
	uint32_t slots;
	size_t reason_length;
	const char *path; /* NULL: it has none */
	segment_writer_watcher *changed;
	void *changed_arg;
};

uint32_t segment_writer_slots(const struct segment_writer *writer)
{
	return writer->slots;
}

/* Slot n holds "b" and n in reversed digits, so that slots and names are in different orders; every seventh is free. */
bool segment_writer_read(const struct segment_writer *writer, uint32_t slot,
			 char name[CBSHM_NAME_ROOM], struct cbshm_detail *detail)
{
	if (slot % 7 == 6)
		return false;
	snprintf(name, CBSHM_NAME_ROOM, "b%u%u%u%u", slot % 10, slot / 10 % 10, slot / 100 % 10,
		 slot / 1000 % 10);
	memset(detail, 0, sizeof(*detail));
	detail->version = UINT64_C(9007199254740993);
	detail->opened_at = INT64_C(1767225600000001);
	detail->disabled_until = detail->last_failure_at = INT64_MIN;
	detail->updated_at = -1;
	detail->default_ttl = 90500000;
	detail->drift_threshold = 0.25;
	detail->failure_threshold = 3;
	detail->schema_error_threshold = 5;
	detail->flags = CBSHM_DETAIL_DISABLED | CBSHM_DETAIL_AUTO_RECOVER;
	detail->incident_id[15] = 0xab;
	detail->reason_length = (uint16_t)writer->reason_length;
	memset(detail->disabled_reason, '\n', writer->reason_length);
	return true;
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
	writer->changed = changed;
	writer->changed_arg = arg;
}

const char *segment_writer_name(const struct segment_writer *writer)
{
	(void)writer;
	return "/cardboard";
}

/* Any file will do, of the mode and group that the test has given it. */
int segment_writer_open_reader(const struct segment_writer *writer)
{
	int fd = writer->path != NULL ? open(writer->path, O_RDONLY | O_CLOEXEC) : -ESTALE;

	return fd == -1 ? -errno : fd;
}

static struct fixture {
	struct event_base *base;
	struct writer writer;
	struct segment_writer segment;
	struct subscriptions *subscriptions;
	struct session_counters counters;
	struct session_host host;
	struct session *session; /* NULL: ended */
	int client;
	int server; /* the session's side */
} fx;

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void pump(void)
{
	for (int i = 0; i < 20; i++)
		event_base_loop(fx.base, EVLOOP_NONBLOCK);
}

static void on_ended(void *arg, struct session *session)
{
	(void)arg;
	CU_ASSERT_PTR_EQUAL(session, fx.session);
	fx.session = NULL;
}

static void open_session_with(enum access access, unsigned stall_ms)
{
	struct peer peer = {.uid = 1234, .gid = 1234, .pid = 1, .user = "someone", .exe = "/bin/x"};
	int pair[2];

	memset(&fx, 0, sizeof(fx));
	fx.base = event_base_new();
	fx.subscriptions = subscriptions_new(fx.base, &fx.segment);
	fx.host = (struct session_host){.event_base = fx.base,
					.subscriptions = fx.subscriptions,
					.writer = &fx.writer,
					.segment = &fx.segment,
					.counters = &fx.counters,
					.stall_ms = stall_ms,
					.ended = on_ended};
	CU_ASSERT_EQUAL_FATAL(
		socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	fx.client = pair[0];
	fx.server = pair[1];
	CU_ASSERT_EQUAL_FATAL(session_new(&fx.host, pair[1], 1, &peer, access, &fx.session), 0);
}

static void open_session(enum access access)
{
	open_session_with(access, 0);
}

static void answer_one(unsigned index, const struct answer *answer)
{
	struct request *request = fx.writer.queue[index];

	memmove(fx.writer.queue + index, fx.writer.queue + index + 1,
		(fx.writer.count - index - 1) * sizeof(*fx.writer.queue));
	fx.writer.count--;
	request->done(request, answer);
}

static void close_session(void)
{
	static const struct answer gone = {.status = ANSWER_DATABASE_UNAVAILABLE};

	session_free(fx.session);
	subscriptions_free(fx.subscriptions);
	while (fx.writer.count > 0)
		answer_one(0, &gone);
	if (fx.client >= 0)
		close(fx.client);
	event_base_free(fx.base);
}

/* ---- a client --------------------------------------------------------------------------- */

static void send_bytes(int fd, const char *bytes, size_t size)
{
	const int64_t end = now_ms() + WAIT_MS;

	while (size > 0 && now_ms() < end) {
		ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent > 0) {
			bytes += sent;
			size -= (size_t)sent;
		} else if (errno != EAGAIN) {
			break;
		}
		pump();
	}
	CU_ASSERT_EQUAL(size, 0);
}

static void send_text(const char *text)
{
	send_bytes(fx.client, text, strlen(text) + 1);
}

/* The next reply, to be freed; NULL: the connection ended, or nothing came. */
static char *receive_from(int fd)
{
	const int64_t end = now_ms() + WAIT_MS;
	size_t size = 0, room = 1 << 21;
	char *reply = malloc(room);

	while (now_ms() < end && size < room) {
		ssize_t got = recv(fd, reply + size, 1, MSG_DONTWAIT);

		if (got == 1 && reply[size++] == '\0')
			return reply;
		if (got == 0 || (got < 0 && errno != EAGAIN))
			break;
		if (got < 0)
			pump();
	}
	free(reply);
	return NULL;
}

static cJSON *receive(void)
{
	char *text = receive_from(fx.client);
	cJSON *reply = text != NULL ? cJSON_Parse(text) : NULL;

	free(text);
	CU_ASSERT_PTR_NOT_NULL(reply);
	return reply;
}

static cJSON *call(const char *text)
{
	send_text(text);
	return receive();
}

static const char *text_of(const cJSON *reply, const char *key)
{
	const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(
		cJSON_GetObjectItemCaseSensitive(reply, "parameters"), key));

	return text != NULL ? text : "";
}

static const char *error_of(const cJSON *reply)
{
	const char *error = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(reply, "error"));

	return error != NULL ? error : "";
}

static bool same(const char *what, const char *got, const char *expected)
{
	if (strcmp(got, expected) == 0)
		return true;
	tap_note("%s: got \"%s\", not \"%s\"", what, got, expected);
	return false;
}

/* Is it this error, with this text in its parameter `key`? */
static void expect_error(const char *what, cJSON *reply, const char *error, const char *key,
			 const char *value)
{
	CU_ASSERT_TRUE(same(what, error_of(reply), error));
	if (key != NULL)
		CU_ASSERT_TRUE(same(what, text_of(reply, key), value));
	cJSON_Delete(reply);
}

static void expect_end(void)
{
	char *rest = receive_from(fx.client);

	CU_ASSERT_PTR_NULL(rest);
	free(rest);
	pump();
	CU_ASSERT_PTR_NULL(fx.session);
}

#define GET_STATE "{\"method\":\"io.cbshm.GetState\",\"parameters\":{\"name\":\"a\"}}"

/* ---- frames and order ------------------------------------------------------------------- */

static void test_introspection(void)
{
	cJSON *reply;

	open_session(ACCESS_ANYBODY);
	reply = call("{\"method\":\"org.varlink.service.GetInfo\"}");
	CU_ASSERT_TRUE(same("product", text_of(reply, "product"), "cbagent"));
	CU_ASSERT_TRUE(same("version", text_of(reply, "version"), PACKAGE_VERSION));
	cJSON_Delete(reply);
	reply = call("{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		     "\"parameters\":{\"interface\":\"io.cbshm\"}}");
	CU_ASSERT_PTR_NOT_NULL(strstr(text_of(reply, "description"), "\nmethod ReportDrift(name:"));
	cJSON_Delete(reply);
	reply = call("{\"method\":\"org.varlink.service.GetInterfaceDescription\","
		     "\"parameters\":{\"interface\":\"org.varlink.service\"}}");
	CU_ASSERT_PTR_NOT_NULL(strstr(text_of(reply, "description"), "\nmethod GetInfo() ->"));
	cJSON_Delete(reply);
	expect_error("other interface",
		     call("{\"method\":\"org.varlink.service.GetInterfaceDescription\","
			  "\"parameters\":{\"interface\":\"io.cbsh\"}}"),
		     "org.varlink.service.InterfaceNotFound", "interface", "io.cbsh");
	expect_error("parameter too many",
		     call("{\"method\":\"org.varlink.service.GetInfo\",\"parameters\":{\"x\":1}}"),
		     "org.varlink.service.InvalidParameter", "parameter", "x");
	expect_error("no interface",
		     call("{\"method\":\"org.varlink.service.GetInterfaceDescription\"}"),
		     "org.varlink.service.InvalidParameter", "parameter", "interface");
	expect_error("unknown method", call("{\"method\":\"io.cbshm.Explode\"}"),
		     "org.varlink.service.MethodNotFound", "method", "io.cbshm.Explode");
	expect_error("unknown interface", call("{\"method\":\"io.systemd.Foo\"}"),
		     "org.varlink.service.InterfaceNotFound", "interface", "io.systemd");
	expect_error("no dot", call("{\"method\":\"Foo\"}"),
		     "org.varlink.service.InterfaceNotFound", "interface", "Foo");
	close_session();
}

static void test_order(void)
{
	static const char *const states[] = {"{\"n\":0}", "{\"n\":1}", "{\"n\":2}"};
	struct answer answer = {.status = ANSWER_OK};

	open_session(ACCESS_REPORT);
	for (int i = 0; i < 3; i++)
		send_text(GET_STATE);
	send_text("{\"method\":\"org.varlink.service.GetInfo\"}");
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 3);
	for (int i = 2; i >= 0; i--) {
		answer.json = states[i];
		answer_one((unsigned)i, &answer);
		pump();
		if (i > 0)
			CU_ASSERT_EQUAL(recv(fx.client, &(char){0}, 1, MSG_DONTWAIT), -1);
	}
	for (int i = 0; i < 3; i++) {
		char *reply = receive_from(fx.client);

		CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
		CU_ASSERT_PTR_NOT_NULL(strstr(reply, states[i]));
		free(reply);
	}
	cJSON *info = receive();
	CU_ASSERT_TRUE(same("last", text_of(info, "product"), "cbagent"));
	cJSON_Delete(info);
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_STATE][REPLY_OK], 3);
	close_session();
}

/* Reads do not overtake writes, nor the other way round; calls of one kind go together. */
static void test_no_overtaking(void)
{
	static const char report[] = "{\"method\":\"io.cbshm.ReportSchemaError\","
				     "\"parameters\":{\"name\":\"a\",\"count\":1}}";
	const struct answer answer = {.status = ANSWER_OK, .json = "{}"};

	open_session(ACCESS_ADMIN);
	send_text(report);
	send_text(report);
	send_text("{\"method\":\"org.varlink.service.GetInfo\"}");
	send_text(GET_STATE);
	send_text(GET_STATE);
	send_text("{\"method\":\"io.cbshm.SetPolicy\"}");
	send_text("{\"method\":\"io.cbshm.List\"}");
	shutdown(fx.client, SHUT_WR);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 2);
	answer_one(1, &answer);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	answer_one(0, &answer);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 2);
	CU_ASSERT_EQUAL(fx.writer.queue[0]->kind, REQUEST_GET_STATE);
	answer_one(0, &answer);
	answer_one(0, &answer);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	CU_ASSERT_EQUAL(fx.writer.queue[0]->kind, REQUEST_SET_POLICY);
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_LIST][REPLY_OK], 0);
	answer_one(0, &answer);
	for (int i = 0; i < 7; i++)
		cJSON_Delete(receive());
	expect_end();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_LIST][REPLY_OK], 1);
	close_session();
}

static void test_pipeline_limit(void)
{
	const struct answer answer = {.status = ANSWER_OK, .json = "{}"};
	const unsigned total = SESSION_PIPELINE_MAX + 100;
	unsigned replies = 0;

	open_session(ACCESS_REPORT);
	for (unsigned i = 0; i < total; i++)
		send_text(GET_STATE);
	pump();
	CU_ASSERT_EQUAL(fx.writer.count, SESSION_PIPELINE_MAX);
	while (replies < total && fx.writer.count > 0) {
		char *reply;

		answer_one(0, &answer);
		reply = receive_from(fx.client);
		if (reply == NULL)
			break;
		free(reply);
		replies++;
		pump();
	}
	CU_ASSERT_EQUAL(replies, total);
	close_session();
}

static void test_oneway(void)
{
	const struct answer answer = {.status = ANSWER_OK, .json = "{\"n\":7}"};
	char *reply;

	open_session(ACCESS_REPORT);
	send_text("{\"oneway\":true,\"method\":\"io.cbshm.ReportSchemaError\","
		  "\"parameters\":{\"name\":\"a\",\"count\":0}}");
	send_text("{\"oneway\":true,\"method\":\"io.cbshm.ReportSchemaError\"}");
	send_text(GET_STATE);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	CU_ASSERT_EQUAL(fx.writer.queue[0]->kind, REQUEST_REPORT_SCHEMA_ERROR);
	answer_one(0, &answer);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	answer_one(0, &answer);
	reply = receive_from(fx.client);
	CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
	CU_ASSERT_TRUE(same("reply", reply, "{\"parameters\":{\"state\":{\"n\":7}}}"));
	free(reply);
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_REPORT_SCHEMA_ERROR][REPLY_INVALID_ARGUMENT], 1);
	close_session();
}

static void test_more_and_upgrade(void)
{
	open_session(ACCESS_REPORT);
	expect_error("more", call("{\"more\":true,\"method\":\"io.cbshm.List\"}"),
		     "org.varlink.service.InvalidParameter", "parameter", "more");
	expect_error("upgrade", call("{\"upgrade\":true,\"method\":\"io.cbshm.List\"}"),
		     "org.varlink.service.InvalidParameter", "parameter", "upgrade");
	close_session();
}

#define SUBSCRIBE "{\"method\":\"io.cbshm.Subscribe\",\"more\":true"

/* Of a reply to Subscribe: "breakers+unknown complete?". */
static bool told(cJSON *reply, int breakers, int unknown, bool complete)
{
	const cJSON *parameters = cJSON_GetObjectItemCaseSensitive(reply, "parameters");
	bool is = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(parameters, "breakers")) ==
			  breakers &&
		  cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(parameters, "unknown")) ==
			  unknown &&
		  cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(parameters, "complete")) ==
			  complete &&
		  cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(reply, "continues"));

	cJSON_Delete(reply);
	return is;
}

static void change_slot(uint32_t slot, const char *removed)
{
	CU_ASSERT_PTR_NOT_NULL_FATAL(fx.segment.changed);
	fx.segment.changed(fx.segment.changed_arg, slot, removed);
}

static void test_subscribe_flags(void)
{
	open_session(ACCESS_REPORT);
	expect_error("no more", call("{\"method\":\"io.cbshm.Subscribe\"}"),
		     "org.varlink.service.ExpectedMore", "", "");
	expect_error("oneway", call(SUBSCRIBE ",\"oneway\":false,\"upgrade\":true}"),
		     "org.varlink.service.InvalidParameter", "parameter", "upgrade");
	expect_error("no array", call(SUBSCRIBE ",\"parameters\":{\"names\":\"a\"}}"),
		     "io.cbshm.InvalidArgument", "field", "names");
	expect_error("none", call(SUBSCRIBE ",\"parameters\":{\"names\":[]}}"),
		     "io.cbshm.InvalidArgument", "field", "names");
	expect_error("no name", call(SUBSCRIBE ",\"parameters\":{\"names\":[\"a\",\"\"]}}"),
		     "io.cbshm.InvalidArgument", "field", "names");
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	close_session();
	open_session(ACCESS_ANYBODY);
	expect_error("stranger", call(SUBSCRIBE "}"), "io.cbshm.PermissionDenied", "", "");
	close_session();
}

static void test_subscribe_all(void)
{
	open_session(ACCESS_REPORT);
	fx.segment.slots = 250; /* every seventh of them free */
	CU_ASSERT_TRUE(told(call(SUBSCRIBE "}"), 100, 0, false));
	CU_ASSERT_TRUE(told(receive(), 100, 0, false));
	CU_ASSERT_TRUE(told(receive(), 250 - 35 - 200, 0, true));
	change_slot(3, NULL);
	change_slot(3, NULL);
	change_slot(6, NULL); /* free: nothing to tell */
	CU_ASSERT_TRUE(told(receive(), 1, 0, true));
	change_slot(13, "gone");
	change_slot(4, NULL);
	CU_ASSERT_TRUE(told(receive(), 1, 1, true));
	change_slot(SEGMENT_WRITER_ALL_SLOTS, NULL);
	CU_ASSERT_TRUE(told(receive(), 100, 0, true));
	CU_ASSERT_TRUE(told(receive(), 100, 0, true));
	CU_ASSERT_TRUE(told(receive(), 250 - 35 - 200, 0, true));
	close_session();
	CU_ASSERT_PTR_NULL(fx.segment.changed);
}

static void test_subscribe_names(void)
{
	open_session(ACCESS_REPORT);
	fx.segment.slots = 100;
	CU_ASSERT_TRUE(told(
		call(SUBSCRIBE ",\"parameters\":{\"names\":[\"b3000\",\"x\",\"b1000\",\"x\"]}}"), 2,
		1, true));
	for (uint32_t slot = 0; slot < 100; slot++)
		change_slot(slot, NULL);
	CU_ASSERT_TRUE(told(receive(), 2, 0, true));
	change_slot(13, "y");
	change_slot(13, "x");
	CU_ASSERT_TRUE(told(receive(), 0, 1, true));
	change_slot(13, "b1000"); /* it is there again, under another number */
	change_slot(3, NULL);
	CU_ASSERT_TRUE(told(receive(), 1, 0, true));
	close_session();
}

static void test_subscribe_empty(void)
{
	open_session(ACCESS_REPORT);
	CU_ASSERT_TRUE(told(call(SUBSCRIBE "}"), 0, 0, true));
	close_session();
}

/* Calls before it are answered first; whatever comes after it ends it. */
static void test_subscribe_order(void)
{
	static const struct answer ok = {.status = ANSWER_OK, .json = "{}"};
	cJSON *reply;

	open_session(ACCESS_ADMIN);
	send_text("{\"method\":\"io.cbshm.GetState\",\"parameters\":{\"name\":\"a\"}}");
	send_text(SUBSCRIBE "}");
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	answer_one(0, &ok);
	reply = receive();
	CU_ASSERT_PTR_NOT_NULL(cJSON_GetObjectItemCaseSensitive(
		cJSON_GetObjectItemCaseSensitive(reply, "parameters"), "state"));
	cJSON_Delete(reply);
	CU_ASSERT_TRUE(told(receive(), 0, 0, true));
	expect_error("a call", call("{\"method\":\"io.cbshm.List\"}"), "io.cbshm.Malformed", "",
		     "");
	CU_ASSERT_PTR_NULL(receive_from(fx.client));
	CU_ASSERT_PTR_NULL(fx.session);
	close_session();
}

/* Its replies stop at some bytes; what changes meanwhile is told once. */
static void test_subscribe_slowly(void)
{
	unsigned replies = 0, states = 0;
	bool last = false;

	open_session(ACCESS_REPORT);
	fx.segment.slots = 5000;
	fx.segment.reason_length = CBSHM_DETAIL_REASON_BYTES;
	send_text(SUBSCRIBE "}");
	for (int i = 0; i < 2000; i++) {
		for (uint32_t slot = 0; slot < 5000; slot += 50)
			change_slot(slot, NULL);
		event_base_loop(fx.base, EVLOOP_NONBLOCK);
	}
	while (!last) {
		cJSON *reply = receive();
		const cJSON *parameters = cJSON_GetObjectItemCaseSensitive(reply, "parameters");
		const cJSON *breakers = cJSON_GetObjectItemCaseSensitive(parameters, "breakers");

		replies++;
		states += (unsigned)cJSON_GetArraySize(breakers);
		last = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(parameters, "complete"));
		cJSON_Delete(reply);
	}
	tap_note("%u replies, %u states of %d breakers", replies, states, 5000 - 714);
	CU_ASSERT_TRUE(states >= 5000 - 714 && states < 3 * 5000);
	close_session();
}

/* The names of what is gone are kept for the slow, but not without end. */
static void test_subscribe_behind(void)
{
	char name[32];
	bool failed = false;

	open_session(ACCESS_REPORT);
	fx.segment.slots = 2000;
	fx.segment.reason_length = CBSHM_DETAIL_REASON_BYTES;
	send_text(SUBSCRIBE "}");
	for (int i = 0; i < 20; i++)
		event_base_loop(fx.base, EVLOOP_NONBLOCK);
	for (unsigned i = 0; i <= SUBSCRIPTION_GONE_MAX; i++) {
		snprintf(name, sizeof(name), "gone%u", i);
		change_slot(6, name);
	}
	while (!failed) {
		char *text = receive_from(fx.client);

		CU_ASSERT_PTR_NOT_NULL_FATAL(text);
		failed = strstr(text, "io.cbshm.LimitExceeded") != NULL;
		free(text);
	}
	CU_ASSERT_PTR_NULL(receive_from(fx.client));
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	close_session();
}

static void test_subscribe_stop(void)
{
	open_session(ACCESS_REPORT);
	CU_ASSERT_TRUE(told(call(SUBSCRIBE "}"), 0, 0, true));
	shutdown(fx.client, SHUT_WR);
	CU_ASSERT_PTR_NULL(receive_from(fx.client));
	CU_ASSERT_PTR_NULL(fx.session);
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	close_session();
	open_session(ACCESS_REPORT);
	CU_ASSERT_TRUE(told(call(SUBSCRIBE "}"), 0, 0, true));
	session_stop(fx.session);
	CU_ASSERT_PTR_NULL(receive_from(fx.client));
	CU_ASSERT_PTR_NULL(fx.session);
	close_session();
}

/* ---- descriptors ------------------------------------------------------------------------ */

#define GET_SEGMENT "{\"method\":\"io.cbshm.GetSegment\"}"
#define HANDED      "{\"parameters\":{\"name\":\"/cardboard\",\"descriptor\":0}}"

static char segment_path[64];

/* A file in the segment's place; returns its descriptor. */
static int make_segment(mode_t mode)
{
	int fd;

	strcpy(segment_path, "/tmp/cbshm-test-segment.XXXXXX");
	fd = mkstemp(segment_path);
	CU_ASSERT_TRUE_FATAL(fd >= 0);
	CU_ASSERT_EQUAL(fchmod(fd, mode), 0);
	fx.segment.path = segment_path;
	return fd;
}

static void open_session_with_segment(enum access access, mode_t mode, unsigned stall_ms)
{
	open_session_with(access, stall_ms);
	close(make_segment(mode));
}

static void close_session_with_segment(void)
{
	unlink(segment_path);
	close_session();
}

/* One recvmsg(): its bytes, and in *descriptor the one that came with them, or -1. */
static ssize_t receive_part(char *bytes, size_t size, int *descriptor)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec part = {bytes, size};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	ssize_t got = -1;

	for (int64_t end = now_ms() + WAIT_MS; now_ms() < end;) {
		message.msg_controllen = sizeof(control);
		got = recvmsg(fx.client, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (got >= 0 || errno != EAGAIN)
			break;
		pump();
	}
	*descriptor = -1;
	if (got > 0 && message.msg_controllen > 0) {
		CU_ASSERT_EQUAL(control.header.cmsg_len, CMSG_LEN(sizeof(int)));
		memcpy(descriptor, CMSG_DATA(&control.header), sizeof(*descriptor));
	}
	return got;
}

/* Is this the one, and can it only be read? Closes it. */
static bool is_segment(int descriptor)
{
	struct stat file, received;
	bool is = stat(segment_path, &file) == 0 && fstat(descriptor, &received) == 0 &&
		  file.st_ino == received.st_ino && file.st_dev == received.st_dev &&
		  (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY;

	close(descriptor);
	return is;
}

static void expect_segment(void)
{
	char bytes[4096] = "";
	int fd;

	CU_ASSERT_EQUAL(receive_part(bytes, sizeof(bytes), &fd), sizeof(HANDED));
	CU_ASSERT_TRUE(same("reply", bytes, HANDED));
	CU_ASSERT_TRUE(is_segment(fd));
}

static void test_handout(void)
{
	open_session_with_segment(ACCESS_ANYBODY, 0644, 0);
	for (int i = 0; i < 3; i++) {
		send_text(i == 0 ? GET_SEGMENT
				 : "{\"method\":\"io.cbshm.GetSegment\",\"parameters\":"
				   "{\"name\":\"/cardboard\"}}");
		expect_segment();
	}
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_OK], 3);
	close_session_with_segment();
}

static void test_handout_refused(void)
{
	open_session_with_segment(ACCESS_ADMIN, 0600, 0);
	expect_error("a stranger", call(GET_SEGMENT), "io.cbshm.PermissionDenied", "message",
		     "user someone (uid 1234) may not read the segment: that takes membership of "
		     "the agent's [segment] group");
	close_session_with_segment();

	open_session_with_segment(ACCESS_ANYBODY, 0644, 0);
	expect_error("another one",
		     call("{\"method\":\"io.cbshm.GetSegment\",\"parameters\":{\"name\":\"/c\"}}"),
		     "io.cbshm.NotFound", "name", "/c");
	expect_error("no text",
		     call("{\"method\":\"io.cbshm.GetSegment\",\"parameters\":{\"name\":1}}"),
		     "io.cbshm.InvalidArgument", "field", "name");
	expect_error("a parameter too many",
		     call("{\"method\":\"io.cbshm.GetSegment\",\"parameters\":{\"x\":1}}"),
		     "io.cbshm.InvalidArgument", "field", "x");
	expect_error("more", call("{\"more\":true,\"method\":\"io.cbshm.GetSegment\"}"),
		     "org.varlink.service.InvalidParameter", "parameter", "more");
	send_text("{\"oneway\":true,\"method\":\"io.cbshm.GetSegment\"}");
	pump();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_INVALID_PARAMETER], 2);
	fx.segment.path = NULL;
	expect_error("it has no name", call(GET_SEGMENT), "io.cbshm.LimitExceeded", NULL, NULL);
	close_session_with_segment();
}

/* One that is not received keeps the next from being sent, and nothing is kept of it here. */
static void test_handout_unreceived(void)
{
	int fd, lowest = dup(0);

	close(lowest);
	open_session_with_segment(ACCESS_ANYBODY, 0644, 0);
	for (int i = 0; i < 100; i++)
		send_text(GET_SEGMENT);
	pump();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_OK], 1);
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_LIMIT_EXCEEDED], 99);
	expect_segment();
	for (int i = 0; i < 99; i++)
		expect_error("unreceived", receive(), "io.cbshm.LimitExceeded", NULL, NULL);
	send_text(GET_SEGMENT);
	expect_segment();
	close_session_with_segment();
	fd = dup(0);
	CU_ASSERT_EQUAL(fd, lowest);
	close(fd);
}

static void test_handout_no_files(void)
{
	struct rlimit limit, none;

	open_session_with_segment(ACCESS_ANYBODY, 0644, 0);
	getrlimit(RLIMIT_NOFILE, &limit);
	none = limit;
	none.rlim_cur = 0;
	setrlimit(RLIMIT_NOFILE, &none);
	expect_error("no files", call(GET_SEGMENT), "io.cbshm.LimitExceeded", "message",
		     "the agent has no file descriptor left: ask again later");
	setrlimit(RLIMIT_NOFILE, &limit);
	send_text(GET_SEGMENT);
	expect_segment();
	close_session_with_segment();
}

#define PADDED 60000

/* Answers that are so long that the socket is full before all of them are out. */
static void answer_padded(void)
{
	static char json[PADDED + 1];

	memset(json, ' ', PADDED);
	strcpy(json + PADDED - 2, "{}");
	while (fx.writer.count > 0)
		answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
	pump();
}

/* Receives so many replies, of which one, number `at` from 1, comes with the segment. */
static void expect_in_order(unsigned count, unsigned at)
{
	static char bytes[65536];
	unsigned replies = 0, handed = 0;

	while (replies < count) {
		int fd;
		ssize_t got = receive_part(bytes, sizeof(bytes), &fd);

		CU_ASSERT_TRUE_FATAL(got > 0);
		for (ssize_t i = 0; i < got; i++)
			replies += bytes[i] == '\0';
		if (fd < 0)
			continue;
		/* The kernel never gives bytes beyond those that a descriptor came with. */
		CU_ASSERT_TRUE_FATAL((size_t)got >= sizeof(HANDED));
		CU_ASSERT_TRUE(same("reply", bytes + got - sizeof(HANDED), HANDED));
		CU_ASSERT_EQUAL(replies, at);
		CU_ASSERT_TRUE(is_segment(fd));
		handed++;
	}
	CU_ASSERT_EQUAL(replies, count);
	CU_ASSERT_EQUAL(handed, 1);
}

/* The descriptor comes with its own reply, whatever waits before and behind it. */
static void test_handout_in_order(void)
{
	open_session_with_segment(ACCESS_REPORT, 0644, 0);
	for (int i = 0; i < 12; i++)
		send_text(i == 10 ? GET_SEGMENT : GET_STATE);
	pump();
	answer_padded();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_OK], 0);
	expect_in_order(12, 11);
	close_session_with_segment();
}

/* What the session has sent to its client, as it were, and the client not received. */
static size_t filled;

static void fill_socket(void)
{
	static const char bytes[4096];
	ssize_t sent;

	for (filled = 0; (sent = send(fx.server, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0;)
		filled += (size_t)sent;
}

static void drain_socket(void)
{
	static char bytes[4096];

	while (filled > 0) {
		int fd;
		ssize_t got =
			receive_part(bytes, filled < sizeof(bytes) ? filled : sizeof(bytes), &fd);

		CU_ASSERT_TRUE_FATAL(got > 0 && fd < 0);
		filled -= (size_t)got;
	}
}

/* A subscription takes the connection over when the descriptor is out, not before. */
static void test_handout_before_subscription(void)
{
	open_session_with_segment(ACCESS_REPORT, 0644, 0);
	for (int i = 0; i < 10; i++)
		send_text(GET_STATE);
	send_text(GET_SEGMENT);
	send_text(SUBSCRIBE "}");
	pump();
	answer_padded();
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	expect_in_order(12, 11);
	CU_ASSERT_PTR_NOT_NULL(fx.segment.changed);
	close_session_with_segment();

	/* And with nothing else under way: only the socket is full. */
	open_session_with_segment(ACCESS_REPORT, 0644, 0);
	fill_socket();
	send_text(GET_SEGMENT);
	send_text(SUBSCRIBE "}");
	pump();
	CU_ASSERT_PTR_NULL(fx.segment.changed);
	drain_socket();
	expect_segment();
	CU_ASSERT_TRUE(told(receive(), 0, 0, true));
	CU_ASSERT_PTR_NOT_NULL(fx.segment.changed);
	close_session_with_segment();
}

/* All replies are out, but the socket is full: as soon as it takes something, or the peer is dropped. */
static void test_handout_full_socket(void)
{
	int64_t end;

	open_session_with_segment(ACCESS_ANYBODY, 0644, 300);
	fill_socket();
	send_text(GET_SEGMENT);
	send_text(GET_SEGMENT);
	pump();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_GET_SEGMENT][REPLY_OK], 0);
	drain_socket();
	expect_segment();
	CU_ASSERT_EQUAL(fx.counters.dropped, 0);
	cJSON_Delete(receive());

	fill_socket();
	send_text(GET_SEGMENT);
	for (end = now_ms() + WAIT_MS; fx.session != NULL && now_ms() < end; usleep(1000))
		pump();
	CU_ASSERT_PTR_NULL(fx.session);
	CU_ASSERT_EQUAL(fx.counters.dropped, 1);
	close_session_with_segment();
}

/* The loop itself was held up for longer than a peer may be: this one has read meanwhile. */
static void test_held_up(void)
{
	open_session_with_segment(ACCESS_ANYBODY, 0644, 50);
	fill_socket();
	send_text(GET_SEGMENT);
	pump();
	drain_socket();
	usleep(100000);
	pump();
	CU_ASSERT_PTR_NOT_NULL_FATAL(fx.session);
	CU_ASSERT_EQUAL(fx.counters.dropped, 0);
	expect_segment();
	close_session_with_segment();
}

static void test_byte_by_byte(void)
{
	static const char text[] = "{\"method\":\"org.varlink.service.GetInfo\"}";
	cJSON *reply;

	open_session(ACCESS_ANYBODY);
	for (size_t i = 0; i < sizeof(text); i++) {
		send_bytes(fx.client, text + i, 1);
		pump();
	}
	reply = receive();
	CU_ASSERT_TRUE(same("product", text_of(reply, "product"), "cbagent"));
	cJSON_Delete(reply);
	close_session();
}

static void test_malformed(void)
{
	static const char *const frames[] = {
		"",
		" ",
		"{",
		"[]",
		"null",
		"1",
		"\"x\"",
		"{}x",
		"{}{}",
		"{\"method\":1}",
		"{\"method\":null}",
		"{\"parameters\":{}}",
		"{\"method\":\"a.b\",}",
		"{\"method\":\"a.b\",\"method\":\"a.b\"}",
		"{\"method\":\"a.b\",\"parameters\":[]}",
		"{\"method\":\"a.b\",\"parameters\":{},\"parameters\":{}}",
		"{\"method\":\"a.b\",\"parameters\":null,\"parameters\":{}}",
		"{\"method\":\"a.b\",\"oneway\":1}",
		"{\"method\":\"a.b\",\"oneway\":\"true\"}",
		"{\"method\":\"a.b\",\"more\":true,\"more\":true}",
		"{\"method\":\"a.b\",\"extra\":1}",
		"{\"Method\":\"a.b\"}",
		"{\"method\":\"a.b\xff\"}",
		"{\"method\":\"a.b\xc0\xaf\"}",
		"{\"method\":\"a.b\xed\xa0\x80\"}",
		"{\"method\":\"a.b\xe2\x82\"}",
		"{\"method\":\"a.b\\u0000c\"}",
		"{\"method\":\"a.b\\ud800\"}",
		"{\"method\":\"a.b\n\"}",
		"{\"method\":\"a.b\\x\"}",
		"{\"method\":\"a.b",
		"{\"method\":\"a.b\\",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":01}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":1.}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":.5}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":-}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":1e}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":NaN}}",
		"{\"method\":\"a.b\",\"parameters\":{\"x\":+1}}",
		"\xef\xbb\xbf{\"method\":\"a.b\"}",
		"{\"method\":\"a.b\"}\x01",
		"\x7f{\"method\":\"a.b\"}",
		"{'method':'a.b'}",
		"{\"method\":\"a.b\"/**/}"};

	for (size_t i = 0; i < COUNT(frames); i++) {
		open_session(ACCESS_ADMIN);
		expect_error(frames[i], call(frames[i]), "io.cbshm.Malformed", NULL, NULL);
		expect_end();
		close_session();
	}
}

/* A malformed frame after good ones: these are answered first, what follows it is not looked at. */
static void test_malformed_in_order(void)
{
	const struct answer answer = {.status = ANSWER_OK, .json = "{}"};
	cJSON *reply;

	open_session(ACCESS_ADMIN);
	send_text(GET_STATE);
	send_text("rubbish");
	send_text(GET_STATE);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	answer_one(0, &answer);
	reply = receive();
	CU_ASSERT_TRUE(same("first", error_of(reply), ""));
	cJSON_Delete(reply);
	expect_error("second", receive(), "io.cbshm.Malformed", NULL, NULL);
	expect_end();
	CU_ASSERT_EQUAL(fx.counters.replies[METHOD_UNKNOWN][REPLY_MALFORMED], 1);
	close_session();
}

static void test_nesting(void)
{
	char text[512], *p;

	/* The message and its parameters are two levels. */
	for (int depth = MESSAGE_DEPTH_MAX - 2; depth <= MESSAGE_DEPTH_MAX - 1; depth++) {
		p = text + sprintf(text, "{\"method\":\"a.b\",\"parameters\":{\"x\":");
		p = memset(p, '[', (size_t)depth);
		p = memset(p + depth, ']', (size_t)depth);
		strcpy(p + depth, "}}");
		open_session(ACCESS_ADMIN);
		expect_error("nesting", call(text),
			     depth > MESSAGE_DEPTH_MAX - 2
				     ? "io.cbshm.Malformed"
				     : "org.varlink.service.InterfaceNotFound",
			     NULL, NULL);
		close_session();
	}
}

static void test_size(void)
{
	char *text = malloc(MESSAGE_SIZE_MAX + 2);
	size_t used;

	memset(text, ' ', MESSAGE_SIZE_MAX + 2);
	used = strlen("{\"method\":\"a.b\"}");
	memcpy(text, "{\"method\":\"a.b\"}", used);
	text[MESSAGE_SIZE_MAX] = '\0';
	open_session(ACCESS_ADMIN);
	send_bytes(fx.client, text, MESSAGE_SIZE_MAX + 1);
	expect_error("the longest", receive(), "org.varlink.service.InterfaceNotFound", NULL, NULL);
	text[MESSAGE_SIZE_MAX] = ' ';
	text[MESSAGE_SIZE_MAX + 1] = '\0';
	send_bytes(fx.client, text, MESSAGE_SIZE_MAX + 2);
	expect_error("one more", receive(), "io.cbshm.Malformed", "message",
		     "the message is longer than 65536 bytes");
	expect_end();
	close_session();

	open_session(ACCESS_ADMIN);
	text[MESSAGE_SIZE_MAX + 1] = ' ';
	send_bytes(fx.client, text, MESSAGE_SIZE_MAX + 2);
	expect_error("no NUL", receive(), "io.cbshm.Malformed", "message",
		     "the message is longer than 65536 bytes");
	expect_end();
	close_session();
	free(text);
}

/* ---- parameters ------------------------------------------------------------------------- */

static cJSON *call_method(const char *method, const char *parameters)
{
	char *text;
	cJSON *reply;

	CU_ASSERT_TRUE_FATAL(asprintf(&text, "{\"method\":\"io.cbshm.%s\",\"parameters\":%s}",
				      method, parameters) > 0);
	reply = call(text);
	free(text);
	return reply;
}

#define LONG_NAME                                                          \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" \
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const struct {
	const char *method, *parameters, *field;
} wrong[] = {
	{"ReportDrift", "{}", "name"},
	{"ReportDrift", "{\"name\":null,\"drift_score\":0.1,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":\"\",\"drift_score\":0.1,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":1,\"drift_score\":0.1,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":\"" LONG_NAME "x\",\"drift_score\":0,\"sample_count\":1}",
	 "name"},
	{"ReportDrift", "{\"name\":\"a\\nb\",\"drift_score\":0,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":\"a\\u007f\",\"drift_score\":0,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":\"a\\u0085\",\"drift_score\":0,\"sample_count\":1}", "name"},
	{"ReportDrift", "{\"name\":\"a\",\"name\":\"b\"}", "name"},
	{"ReportDrift", "{\"name\":\"a\",\"sample_count\":1}", "drift_score"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":1.0001,\"sample_count\":1}",
	 "drift_score"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":-0.1,\"sample_count\":1}", "drift_score"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":\"0.1\",\"sample_count\":1}",
	 "drift_score"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":1e999,\"sample_count\":1}", "drift_score"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0.1}", "sample_count"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0.1,\"sample_count\":0}", "sample_count"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0.1,\"sample_count\":1.5}",
	 "sample_count"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0.1,\"sample_count\":1e16}",
	 "sample_count"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"details\":[]}",
	 "details"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"details\":\"{}\"}",
	 "details"},
	{"ReportDrift",
	 "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"details\":{\"x\":1e999}}",
	 "details"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"count\":1}",
	 "count"},
	{"ReportDrift", "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"timeout_ms\":0}",
	 "timeout_ms"},
	{"ReportDrift",
	 "{\"name\":\"a\",\"drift_score\":0,\"sample_count\":1,\"timeout_ms\":3600001}",
	 "timeout_ms"},
	{"ReportSchemaError", "{\"name\":\"a\"}", "count"},
	{"ReportSchemaError", "{\"name\":\"a\",\"count\":-1}", "count"},
	{"ReportSchemaError", "{\"name\":\"a\",\"count\":true}", "count"},
	{"Disable", "{\"name\":\"a\"}", "reason"},
	{"Disable", "{\"name\":\"a\",\"reason\":null}", "reason"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"\"}", "reason"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"a\\rb\"}", "reason"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"by\":\"\"}", "by"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"by\":\"" LONG_NAME "x\"}", "by"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"by\":\"a\\tb\"}", "by"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"tomorrow\"}", "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"infinity\"}", "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:00:00\"}", "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-02-29T00:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"1900-02-29T00:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-04-31T00:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-13-01T00:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"0000-01-01T00:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T24:00:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:60:00Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:00:00.Z\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:00:00+1600\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:00:00+16:00\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":\"2030-01-01T00:00:00Zx\"}",
	 "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"until\":1}", "until"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"ttl_seconds\":0}", "ttl_seconds"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"ttl_seconds\":-1}", "ttl_seconds"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"ttl_seconds\":315360001}", "ttl_seconds"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"ttl_seconds\":1,\"until\":\"never\"}",
	 "ttl_seconds"},
	{"Disable", "{\"name\":\"a\",\"reason\":\"r\",\"request_id\":\"7\"}", "request_id"},
	{"Enable", "{\"name\":\"a\",\"request_id\":\"5a0b1c9e-8d1f-4c57-9a55-6d3f0c2b7e4g\"}",
	 "request_id"},
	{"Enable", "{\"name\":\"a\",\"until\":\"never\"}", "until"},
	{"Reset", "{\"reason\":\"r\"}", "name"},
	{"GetState", "{}", "name"},
	{"GetIncidents", "{\"limit\":0}", "limit"},
	{"GetIncidents", "{\"limit\":1001}", "limit"},
	{"GetIncidents", "{\"include_resolved\":1}", "include_resolved"},
	{"SetPolicy", "{\"set\":[]}", "set"},
	{"SetPolicy", "{\"set\":{\"drift_threshold\":1.1}}", "drift_threshold"},
	{"SetPolicy", "{\"set\":{\"drift_threshold\":null}}", "drift_threshold"},
	{"SetPolicy", "{\"set\":{\"failure_threshold\":0}}", "failure_threshold"},
	{"SetPolicy", "{\"set\":{\"failure_threshold\":2147483648}}", "failure_threshold"},
	{"SetPolicy", "{\"set\":{\"schema_error_threshold\":0}}", "schema_error_threshold"},
	{"SetPolicy", "{\"set\":{\"default_ttl_seconds\":-1}}", "default_ttl_seconds"},
	{"SetPolicy", "{\"set\":{\"default_ttl_seconds\":0.0000004}}", "default_ttl_seconds"},
	{"SetPolicy", "{\"set\":{\"default_ttl_seconds\":315360001}}", "default_ttl_seconds"},
	{"SetPolicy", "{\"set\":{\"auto_recover\":0}}", "auto_recover"},
	{"SetPolicy", "{\"set\":{\"drift\":0}}", "drift"},
	{"SetPolicy", "{\"set\":{\"auto_recover\":true,\"auto_recover\":true}}", "auto_recover"},
	{"SetPolicy", "{\"name\":\"a\",\"clear\":\"auto_recover\"}", "clear"},
	{"SetPolicy", "{\"name\":\"a\",\"clear\":[1]}", "clear"},
	{"SetPolicy", "{\"name\":\"a\",\"clear\":[\"x\"]}", "x"},
	{"SetPolicy", "{\"clear\":[\"auto_recover\"]}", "clear"},
	{"SetPolicy",
	 "{\"name\":\"a\",\"set\":{\"auto_recover\":true},\"clear\":[\"auto_recover\"]}",
	 "auto_recover"},
	{"List", "{\"limit\":101}", "limit"},
	{"List", "{\"after\":\"\"}", "after"},
	{"List", "{\"timeout_ms\":1}", "timeout_ms"},
};

static void test_wrong_arguments(void)
{
	open_session(ACCESS_ADMIN);
	for (size_t i = 0; i < COUNT(wrong); i++)
		expect_error(wrong[i].parameters, call_method(wrong[i].method, wrong[i].parameters),
			     "io.cbshm.InvalidArgument", "field", wrong[i].field);
	CU_ASSERT_EQUAL(fx.writer.count, 0);
	CU_ASSERT_PTR_NOT_NULL(fx.session);
	close_session();
}

/* The request that comes of a call; it stays with the fixture. */
static const struct request *submitted(const char *method, const char *parameters)
{
	const unsigned before = fx.writer.count;
	char *text;

	CU_ASSERT_TRUE_FATAL(asprintf(&text, "{\"method\":\"io.cbshm.%s\",\"parameters\":%s}",
				      method, parameters) > 0);
	send_text(text);
	free(text);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, before + 1);
	return fx.writer.queue[before];
}

static void test_reports(void)
{
	const struct request *request;

	open_session(ACCESS_REPORT);
	request = submitted("ReportDrift",
			    "{\"name\":\"" LONG_NAME "\",\"drift_score\":1,"
			    "\"sample_count\":9007199254740991,\"details\":{ \"k \\\" {\" :\t"
			    "[1, 12345678901234567890 ,-2.50e+3,true ] , \"o\":{ } } ,"
			    "\"timeout_ms\":3600000}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_REPORT_DRIFT);
	CU_ASSERT_STRING_EQUAL(request->name, LONG_NAME);
	CU_ASSERT_EQUAL(request->score, 1.0);
	CU_ASSERT_EQUAL(request->count, INT64_C(9007199254740991));
	CU_ASSERT_STRING_EQUAL(request->details,
			       "{\"k \\\" {\":[1,12345678901234567890,-2.50e+3,true],\"o\":{}}");
	CU_ASSERT_TRUE(request->deadline / 1000 > now_ms() + 3590000 &&
		       request->deadline / 1000 <= now_ms() + 3600000);
	CU_ASSERT_EQUAL(request->peer.uid, 1234);
	request = submitted("ReportSchemaError",
			    "{\"name\":\"gr\\u00fc\\u00df\",\"count\":0,\"details\":null}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_REPORT_SCHEMA_ERROR);
	CU_ASSERT_STRING_EQUAL(request->name, "gr\xc3\xbc\xc3\x9f");
	CU_ASSERT_EQUAL(request->count, 0);
	CU_ASSERT_PTR_NULL(request->details);
	CU_ASSERT_TRUE(request->deadline / 1000 > now_ms() + 4000 &&
		       request->deadline / 1000 <= now_ms() + 5000);
	close_session();
}

static void test_decisions(void)
{
	const struct request *request;

	open_session(ACCESS_ADMIN);
	request = submitted("Disable", "{\"name\":\"a\",\"reason\":\"two\\n\\tlines\","
				       "\"until\":\"2028-02-29T23:59:59.123456-15:59\"}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_DISABLE);
	CU_ASSERT_STRING_EQUAL(request->reason, "two\n\tlines");
	CU_ASSERT_STRING_EQUAL(request->by, "someone");
	CU_ASSERT_STRING_EQUAL(request->until, "2028-03-01T15:58:59.123456Z");
	CU_ASSERT_EQUAL(request->ttl_us, 0);
	request = submitted("Disable", "{\"name\":\"a\",\"reason\":\"r\",\"by\":\"me\","
				       "\"until\":\"never\",\"ttl_seconds\":null}");
	CU_ASSERT_STRING_EQUAL(request->until, "infinity");
	CU_ASSERT_STRING_EQUAL(request->by, "me");
	request = submitted("Disable", "{\"name\":\"a\",\"reason\":\"r\",\"ttl_seconds\":1.5,"
				       "\"request_id\":\"5A0b1c9e-8d1f-4c57-9a55-6d3f0c2b7e41\"}");
	CU_ASSERT_EQUAL(request->ttl_us, 1500000);
	CU_ASSERT_STRING_EQUAL(request->request_id, "5A0b1c9e-8d1f-4c57-9a55-6d3f0c2b7e41");
	CU_ASSERT_PTR_NULL(request->until);
	request = submitted("Reset", "{\"name\":\"a\",\"reason\":\"fine again\"}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_ENABLE);
	CU_ASSERT_STRING_EQUAL(request->reason, "fine again");
	CU_ASSERT_STRING_EQUAL(request->by, "someone");
	close_session();
}

static void test_reads_and_policy(void)
{
	const struct request *request;

	open_session(ACCESS_ADMIN);
	request = submitted("GetIncidents", "{}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_GET_INCIDENTS);
	CU_ASSERT_PTR_NULL(request->name);
	CU_ASSERT_EQUAL(request->limit, 10);
	CU_ASSERT_FALSE(request->include_resolved);
	request = submitted("GetIncidents",
			    "{\"name\":\"a\",\"include_resolved\":true,\"limit\":1000}");
	CU_ASSERT_STRING_EQUAL(request->name, "a");
	CU_ASSERT_EQUAL(request->limit, 1000);
	CU_ASSERT_TRUE(request->include_resolved);
	/* Both have set much aside for their replies: the next call waits for that. */
	answer_one(0, &(struct answer){.status = ANSWER_OK});
	answer_one(0, &(struct answer){.status = ANSWER_OK});
	request = submitted("SetPolicy", "{}");
	CU_ASSERT_EQUAL(request->kind, REQUEST_SET_POLICY);
	CU_ASSERT_EQUAL(request->policy_set | request->policy_clear, 0);
	request = submitted("SetPolicy",
			    "{\"name\":\"a\",\"set\":{\"drift_threshold\":0,"
			    "\"failure_threshold\":2147483647,\"default_ttl_seconds\":0.5,"
			    "\"auto_recover\":true},\"clear\":[\"schema_error_threshold\"]}");
	CU_ASSERT_EQUAL(request->policy_set,
			REQUEST_POLICY_DRIFT_THRESHOLD | REQUEST_POLICY_FAILURE_THRESHOLD |
				REQUEST_POLICY_DEFAULT_TTL | REQUEST_POLICY_AUTO_RECOVER);
	CU_ASSERT_EQUAL(request->policy_clear, REQUEST_POLICY_SCHEMA_ERROR_THRESHOLD);
	CU_ASSERT_EQUAL(request->failure_threshold, INT32_MAX);
	CU_ASSERT_EQUAL(request->default_ttl_us, 500000);
	CU_ASSERT_TRUE(request->auto_recover);
	close_session();
}

/* Details are measured as the database will print them: 1e300 is 301 digits there. */
static void test_details_size(void)
{
	char *text = malloc(MESSAGE_SIZE_MAX), *p;

	open_session(ACCESS_REPORT);
	for (int excess = 0; excess <= 1; excess++) {
		p = text + sprintf(text, "{\"name\":\"a\",\"count\":1,\"details\":{\"x\":\"");
		p = memset(p, 'x', 32768 - strlen("{\"x\":\"\"}") + (size_t)excess);
		strcpy(p + 32768 - strlen("{\"x\":\"\"}") + excess, "\"}}");
		if (excess == 0)
			submitted("ReportSchemaError", text);
		else
			send_text("{\"method\":\"org.varlink.service.GetInfo\"}");
	}
	answer_one(0, &(struct answer){.status = ANSWER_OK});
	cJSON_Delete(receive());
	cJSON_Delete(receive());
	expect_error("too long", call_method("ReportSchemaError", text), "io.cbshm.InvalidArgument",
		     "field", "details");
	p = text + sprintf(text, "{\"name\":\"a\",\"count\":1,\"details\":{\"x\":[0");
	for (int i = 0; i < 150; i++)
		p += sprintf(p, ",1e300");
	strcpy(p, "]}}");
	expect_error("numbers", call_method("ReportSchemaError", text), "io.cbshm.InvalidArgument",
		     "field", "details");
	close_session();
	free(text);
}

/* ---- authorization ---------------------------------------------------------------------- */

static void test_access(void)
{
	static const struct {
		const char *method, *parameters;
		enum access needed;
	} calls[] = {
		{"ReportDrift", "{\"name\":\"a\",\"drift_score\":1,\"sample_count\":1}",
		 ACCESS_REPORT},
		{"ReportSchemaError", "{\"name\":\"a\",\"count\":1}", ACCESS_REPORT},
		{"GetState", "{\"name\":\"a\"}", ACCESS_REPORT},
		{"GetIncidents", "{}", ACCESS_REPORT},
		{"Disable", "{\"name\":\"a\",\"reason\":\"r\"}", ACCESS_ADMIN},
		{"Enable", "{\"name\":\"a\"}", ACCESS_ADMIN},
		{"Reset", "{\"name\":\"a\"}", ACCESS_ADMIN},
		{"SetPolicy", "{}", ACCESS_ADMIN},
	};

	for (int access = ACCESS_ANYBODY; access <= ACCESS_ADMIN; access++) {
		for (size_t i = 0; i < COUNT(calls); i++) {
			open_session((enum access)access);
			if ((enum access)access >= calls[i].needed)
				submitted(calls[i].method, calls[i].parameters);
			else
				/* permission comes before parameters */
				expect_error(calls[i].method,
					     call_method(calls[i].method, "{\"nonsense\":1}"),
					     "io.cbshm.PermissionDenied", NULL, NULL);
			close_session();
		}
	}
	open_session(ACCESS_ANYBODY);
	expect_error("List", call_method("List", "{}"), "io.cbshm.PermissionDenied", "message",
		     "user someone (uid 1234) may not call io.cbshm.List: that takes membership of "
		     "the agent's [socket] group or admin_group");
	close_session();
}

/* ---- answers ---------------------------------------------------------------------------- */

static void test_answers(void)
{
	static const struct {
		struct answer answer;
		const char *error, *key, *value;
	} cases[] = {
		{{.status = ANSWER_INVALID, .field = "until", .message = "is past"},
		 "io.cbshm.InvalidArgument",
		 "field",
		 "until"},
		{{.status = ANSWER_NOT_FOUND}, "io.cbshm.NotFound", "name", "a"},
		{{.status = ANSWER_OK}, "io.cbshm.NotFound", "name", "a"},
		{{.status = ANSWER_DATABASE_UNAVAILABLE},
		 "io.cbshm.DatabaseUnavailable",
		 "message",
		 "Postgres cannot be reached; nothing was applied"},
		{{.status = ANSWER_BUSY}, "io.cbshm.Busy", "name", "a"},
		{{.status = ANSWER_TIMEOUT}, "io.cbshm.Timeout", NULL, NULL},
		{{.status = ANSWER_OUTCOME_UNKNOWN}, "io.cbshm.OutcomeUnknown", NULL, NULL},
		{{.status = ANSWER_LIMIT, .message = "full"},
		 "io.cbshm.LimitExceeded",
		 "message",
		 "full"},
		{{.status = ANSWER_DATABASE_ERROR, .sqlstate = "42501", .message = "no"},
		 "io.cbshm.DatabaseError",
		 "sqlstate",
		 "42501"},
	};

	open_session(ACCESS_ADMIN);
	for (size_t i = 0; i < COUNT(cases); i++) {
		submitted("GetState", "{\"name\":\"a\"}");
		answer_one(0, &cases[i].answer);
		expect_error(cases[i].error, receive(), cases[i].error, cases[i].key,
			     cases[i].value);
	}
	close_session();
}

static void expect_reply(const char *method, const char *parameters, struct answer answer,
			 const char *expected)
{
	char *reply;

	submitted(method, parameters);
	answer_one(0, &answer);
	reply = receive_from(fx.client);
	CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
	CU_ASSERT_TRUE(same(method, reply, expected));
	free(reply);
}

static void test_replies(void)
{
	open_session(ACCESS_ADMIN);
	expect_reply("ReportSchemaError", "{\"name\":\"a\",\"count\":1}",
		     (struct answer){.status = ANSWER_OK}, "{\"parameters\":{\"incident\":null}}");
	expect_reply("ReportSchemaError", "{\"name\":\"a\",\"count\":1}",
		     (struct answer){.status = ANSWER_OK, .json = "{\"id\": \"x\"}"},
		     "{\"parameters\":{\"incident\":{\"id\": \"x\"}}}");
	expect_reply("Disable", "{\"name\":\"a\",\"reason\":\"r\"}",
		     (struct answer){.status = ANSWER_OK, .changed = true, .json = "{}"},
		     "{\"parameters\":{\"changed\":true,\"incident\":{}}}");
	expect_reply("Enable", "{\"name\":\"a\"}", (struct answer){.status = ANSWER_OK},
		     "{\"parameters\":{\"changed\":false}}");
	expect_reply("GetIncidents", "{}", (struct answer){.status = ANSWER_OK},
		     "{\"parameters\":{\"incidents\":[]}}");
	expect_reply("SetPolicy", "{}", (struct answer){.status = ANSWER_OK, .json = "{\"p\":1}"},
		     "{\"parameters\":{\"policy\":{\"p\":1}}}");
	close_session();
}

static void test_incidents_too_long(void)
{
	char *json = malloc(METHODS_REPLY_MAX + 1);

	memset(json, ' ', METHODS_REPLY_MAX);
	json[0] = '[';
	json[METHODS_REPLY_MAX - 1] = ']';
	json[METHODS_REPLY_MAX] = '\0';
	open_session(ACCESS_REPORT);
	submitted("GetIncidents", "{\"limit\":1000}");
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
	expect_error("too long", receive(), "io.cbshm.LimitExceeded", NULL, NULL);
	json[METHODS_REPLY_MAX - 100] = ']';
	json[METHODS_REPLY_MAX - 99] = '\0';
	submitted("GetIncidents", "{\"limit\":1000}");
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
	expect_error("fits", receive(), "", NULL, NULL);
	submitted("GetIncidents", "{\"limit\":7}");
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
	expect_error("too long for 7", receive(), "io.cbshm.LimitExceeded", NULL, NULL);
	close_session();
	free(json);
}

/* ---- List ------------------------------------------------------------------------------- */

/* Goes through all pages; returns how many breakers came, sorted and each once. */
static unsigned list_all(unsigned limit, unsigned *pages)
{
	char parameters[256] = "{}", last[CBSHM_NAME_ROOM] = "";
	unsigned count = 0;
	bool complete = false;

	if (limit != 0)
		sprintf(parameters, "{\"limit\":%u}", limit);
	for (*pages = 0; !complete && *pages < 2000; (*pages)++) {
		cJSON *reply = call_method("List", parameters);
		const cJSON *result = cJSON_GetObjectItem(reply, "parameters"), *state;

		cJSON_ArrayForEach(state, cJSON_GetObjectItem(result, "breakers"))
		{
			const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(state, "name"));

			CU_ASSERT_TRUE(strcmp(name, last) > 0);
			strcpy(last, name);
			count++;
		}
		complete = cJSON_IsTrue(cJSON_GetObjectItem(result, "complete"));
		cJSON_Delete(reply);
		sprintf(parameters, "{\"after\":\"%s\",\"limit\":%u}", last, limit ? limit : 100);
	}
	return count;
}

static void test_list_pages(void)
{
	unsigned pages;

	open_session(ACCESS_REPORT);
	CU_ASSERT_EQUAL(list_all(0, &pages), 0);
	CU_ASSERT_EQUAL(pages, 1);
	fx.segment.slots = 1000;
	CU_ASSERT_EQUAL(list_all(0, &pages), 1000 - 142);
	CU_ASSERT_EQUAL(pages, 9);
	CU_ASSERT_EQUAL(list_all(1, &pages), 1000 - 142);
	CU_ASSERT_EQUAL(pages, 1000 - 142);
	fx.segment.slots = 7;
	CU_ASSERT_EQUAL(list_all(6, &pages), 6);
	CU_ASSERT_EQUAL(pages, 1);
	close_session();
}

static void test_list_size(void)
{
	const size_t most = CBSHM_DETAIL_REASON_BYTES;
	char *reply;
	unsigned pages;

	open_session(ACCESS_REPORT);
	fx.segment.slots = 200;
	fx.segment.reason_length = most; /* line feeds: twice as long in JSON */
	send_text("{\"method\":\"io.cbshm.List\"}");
	reply = receive_from(fx.client);
	CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
	tap_note("a page of long reasons: %zu bytes", strlen(reply));
	CU_ASSERT_TRUE(strlen(reply) <= MESSAGE_SIZE_MAX);
	CU_ASSERT_TRUE(strlen(reply) > MESSAGE_SIZE_MAX - 2048);
	CU_ASSERT_PTR_NOT_NULL(strstr(reply, "\"complete\":false"));
	free(reply);
	CU_ASSERT_EQUAL(list_all(0, &pages), 200 - 28);
	CU_ASSERT_EQUAL(pages, 3);
	close_session();
}

static void test_list_state(void)
{
	char *reply;

	open_session(ACCESS_REPORT);
	fx.segment.slots = 1;
	fx.segment.reason_length = 1;
	send_text("{\"method\":\"io.cbshm.List\"}");
	reply = receive_from(fx.client);
	CU_ASSERT_PTR_NOT_NULL_FATAL(reply);
	CU_ASSERT_TRUE(same(
		"state", reply,
		"{\"parameters\":{\"breakers\":[{\"name\":\"b0000\",\"is_open\":true,"
		"\"opened_at\":\"2026-01-01T00:00:00.000001Z\",\"reason\":\"\\n\","
		"\"incident_id\":\"00000000-0000-0000-0000-0000000000ab\","
		"\"consecutive_failures\":0,\"last_failure_at\":null,\"disabled_until\":null,"
		"\"disabled_by\":null,\"version\":9007199254740993,"
		"\"updated_at\":\"1969-12-31T23:59:59.999999Z\",\"policy\":{"
		"\"drift_threshold\":0.25,\"failure_threshold\":3,\"schema_error_threshold\":5,"
		"\"default_ttl_seconds\":90.5,\"auto_recover\":true}}],\"complete\":true}}"));
	free(reply);
	close_session();
}

/* ---- reports that are read without a tree ------------------------------------------------ */

#define DRIFT(parameters) \
	"{\"method\":\"io.cbshm.ReportDrift\",\"parameters\":{\"name\":\"a/b c\"," parameters "}}"

#define SPACED                                                                               \
	" {\t\"oneway\" : true ,\n\"parameters\" : { \"name\" : \"x\" , \"count\" : 12 } , " \
	"\"method\" : \"io.cbshm.ReportSchemaError\" }\r\n"

static const char *const read_at_once[] = {
	DRIFT("\"drift_score\":0.25,\"sample_count\":500"),
	DRIFT("\"drift_score\":1,\"sample_count\":1,\"timeout_ms\":3600000"),
	DRIFT("\"sample_count\":999999999999999,\"drift_score\":0.12345678901234567"),
	DRIFT("\"drift_score\":0.1234567890123456789012345678,\"sample_count\":7"),
	DRIFT("\"drift_score\":0.000000000000001,\"sample_count\":7"),
	"{\"parameters\":{\"count\":0,\"name\":\"x\"},\"method\":\"io.cbshm.ReportSchemaError\"}",
	SPACED,
};

/* Right or wrong, but not read here. */
static const char *const left_to_others[] = {
	"",
	"{",
	"{}",
	"[]",
	DRIFT("\"drift_score\":0.25"),
	DRIFT("\"drift_score\":1.5,\"sample_count\":1"),
	DRIFT("\"drift_score\":1.00000000000000000001,\"sample_count\":1}"),
	DRIFT("\"drift_score\":-0.1,\"sample_count\":1"),
	DRIFT("\"drift_score\":1e-3,\"sample_count\":1"),
	DRIFT("\"drift_score\":.5,\"sample_count\":1"),
	DRIFT("\"drift_score\":0.,\"sample_count\":1"),
	DRIFT("\"drift_score\":00.5,\"sample_count\":1"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":01"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":0"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1.0"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":9007199254740992"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,\"timeout_ms\":0"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,\"details\":{}"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,\"count\":1"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,\"name\":\"b\""),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,"),
	DRIFT("\"drift_score\":0.5,\"sample_count\":1") "x",
	DRIFT("\"drift_score\":0.5,\"sample_count\":1,\"n\\u0061me\":\"b\""),
	"{\"method\":\"io.cbshm.ReportSchemaError\",\"parameters\":{\"name\":\"\",\"count\":1}}",
	"{\"method\":\"io.cbshm.ReportSchemaError\",\"parameters\":{\"name\":\"\303\251\","
	"\"count\":1}}",
	"{\"method\":\"io.cbshm.ReportSchemaError\",\"parameters\":{\"name\":\"a\",\"count\":1},"
	"\"more\":false}",
	"{\"method\":\"io.cbshm.GetState\",\"parameters\":{\"name\":\"a\"}}",
};

static void test_report_texts(void)
{
	for (unsigned i = 0; i < COUNT(read_at_once); i++) {
		if (same_report(read_at_once[i], strlen(read_at_once[i])) == REPORT_SAME)
			continue;
		CU_FAIL("not read, or otherwise");
		tap_note("%s", read_at_once[i]);
	}
	for (unsigned i = 0; i < COUNT(left_to_others); i++) {
		if (same_report(left_to_others[i], strlen(left_to_others[i])) == REPORT_LEFT)
			continue;
		CU_FAIL("read all the same");
		tap_note("%s", left_to_others[i]);
	}
}

static uint32_t chance(uint64_t *state, uint32_t below)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)((*state >> 33) % below);
}

/* Puts one of the pieces that such texts are made of in the place of a few bytes. */
static void spoil(char *text, size_t room, uint64_t *state)
{
	static const char *const pieces[] = {"",
					     "\"",
					     "{",
					     "}",
					     ",",
					     ":",
					     " ",
					     "\\",
					     "0",
					     "1",
					     "9",
					     ".",
					     "e5",
					     "-",
					     "true",
					     "null",
					     "\303\251",
					     "\177",
					     "\t",
					     "\"count\":1,",
					     "\"name\":\"n\",",
					     "15"};
	const size_t length = strlen(text), at = chance(state, (uint32_t)length + 1);
	const char *piece = pieces[chance(state, COUNT(pieces))];
	size_t gone = chance(state, 3);
	char rest[1024];

	if (gone > length - at)
		gone = length - at;
	snprintf(rest, sizeof(rest), "%s", text + at + gone);
	snprintf(text + at, room - at, "%s%s", piece, rest);
}

/* Whatever becomes of a report: nothing is read here that the others refuse, or read in another way. */
static void test_report_mutations(void)
{
	unsigned outcomes[3] = {0};
	uint64_t state = 1;
	char text[1024];

	for (unsigned i = 0; i < 100000; i++) {
		snprintf(text, sizeof(text), "%s", read_at_once[i % COUNT(read_at_once)]);
		for (uint32_t n = chance(&state, 3) + 1; n > 0; n--)
			spoil(text, sizeof(text), &state);
		outcomes[same_report(text, strlen(text))]++;
	}
	tap_note("%u read alike, %u left", outcomes[REPORT_SAME], outcomes[REPORT_LEFT]);
	CU_ASSERT_EQUAL(outcomes[REPORT_DIFFERS], 0);
	CU_ASSERT_TRUE(outcomes[REPORT_SAME] > 1000);
}

/* ---- how sessions end ------------------------------------------------------------------- */

static void test_half_close(void)
{
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	send_text(GET_STATE);
	shutdown(fx.client, SHUT_WR);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 2);
	for (int i = 0; i < 2; i++) {
		answer_one(0, &(struct answer){.status = ANSWER_OK, .json = "{}"});
		cJSON_Delete(receive());
	}
	expect_end();
	close_session();
}

static void test_end_within_message(void)
{
	open_session(ACCESS_REPORT);
	send_bytes(fx.client, "{\"meth", 6);
	shutdown(fx.client, SHUT_WR);
	expect_error("cut", receive(), "io.cbshm.Malformed", NULL, NULL);
	expect_end();
	close_session();
}

/* A client that leaves does not take back what it asked for. */
static void test_client_gone(void)
{
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	send_text(GET_STATE);
	pump();
	close(fx.client);
	fx.client = -1;
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 2);
	answer_one(1, &(struct answer){.status = ANSWER_OK, .json = "{}"});
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = "{}"});
	pump();
	CU_ASSERT_PTR_NULL(fx.session);
	close_session();
}

/* Requests that outlive a session that was freed from outside. */
static void test_orphans(void)
{
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	send_text(GET_STATE);
	pump();
	answer_one(1, &(struct answer){.status = ANSWER_OK, .json = "{}"});
	session_free(fx.session);
	fx.session = NULL;
	CU_ASSERT_EQUAL(fx.writer.count, 1);
	close_session();
}

/* The agent stops by force: the writer answers, and the loop does not turn again. */
static void test_last_words(void)
{
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	pump();
	answer_one(0, &(struct answer){.status = ANSWER_OUTCOME_UNKNOWN});
	session_free(fx.session);
	fx.session = NULL;
	expect_error("last words", receive(), "io.cbshm.OutcomeUnknown", NULL, NULL);
	close_session();
}

static void test_stall(void)
{
	const int64_t end = now_ms() + WAIT_MS;
	char *json = malloc(60000);

	open_session_with(ACCESS_REPORT, 200);
	memset(json, ' ', 60000);
	strcpy(json + 59997, "[]");
	for (int i = 0; i < 40; i++)
		send_text("{\"method\":\"io.cbshm.GetIncidents\",\"parameters\":{\"limit\":1}}");
	pump();
	/* Each of these may need 64 KiB, and the next call 512: no more are read than have room. */
	CU_ASSERT_EQUAL(fx.writer.count, 9);
	while (fx.session != NULL && now_ms() < end) {
		while (fx.writer.count > 0)
			answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
		pump();
		usleep(1000);
	}
	CU_ASSERT_PTR_NULL(fx.session);
	CU_ASSERT_EQUAL(fx.counters.dropped, 1);
	close_session();
	free(json);
}

/* The same amount for a client that reads, however slowly: nobody is dropped. */
static void test_much_output(void)
{
	char *json = malloc(60000), *reply;
	unsigned replies = 0;

	memset(json, ' ', 60000);
	strcpy(json + 59997, "[]");
	open_session(ACCESS_REPORT);
	for (int i = 0; i < 100; i++)
		send_text("{\"method\":\"io.cbshm.GetIncidents\"}");
	pump();
	while (replies < 100) {
		pump();
		while (fx.writer.count > 0)
			answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
		reply = receive_from(fx.client);
		if (reply == NULL)
			break;
		replies++;
		free(reply);
	}
	CU_ASSERT_EQUAL(replies, 100);
	CU_ASSERT_EQUAL(fx.counters.dropped, 0);
	close_session();
	free(json);
}

static void test_too_much_output(void)
{
	char *json = malloc((2 << 20) + 1);

	memset(json, ' ', 2 << 20);
	strcpy(json + (2 << 20) - 2, "{}");
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	pump();
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = json});
	expect_end();
	CU_ASSERT_EQUAL(fx.counters.dropped, 1);
	close_session();
	free(json);
}

static void test_stop(void)
{
	open_session(ACCESS_REPORT);
	send_text(GET_STATE);
	pump();
	session_stop(fx.session);
	session_stop(fx.session);
	pump();
	CU_ASSERT_PTR_NOT_NULL_FATAL(fx.session);
	send_text(GET_STATE);
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = "{}"});
	cJSON_Delete(receive());
	expect_end();
	close_session();
}

/* ---- the listener ----------------------------------------------------------------------- */

static struct door {
	struct agent agent;
	struct listener_options options;
	struct listener *listener;
	char directory[64];
	char path[96];
	char message[256];
	bool stopped;
} door;

static void make_directory(void)
{
	memset(&fx, 0, sizeof(fx));
	memset(&door, 0, sizeof(door));
	fx.base = event_base_new();
	fx.client = -1;
	strcpy(door.directory, "/tmp/cbshm-test-XXXXXX");
	CU_ASSERT_PTR_NOT_NULL_FATAL(mkdtemp(door.directory));
	chmod(door.directory, 0755);
	snprintf(door.path, sizeof(door.path), "%s/io.cbshm", door.directory);
	door.agent.base = fx.base;
	door.agent.writer = &fx.writer;
	door.agent.segment = &fx.segment;
	door.options = (struct listener_options){
		.path = door.path, .mode = 0660, .group = (gid_t)-1, .admin_group = (gid_t)-1};
}

static int listen_there(void)
{
	return listener_new(&door.agent, &door.options, &door.listener, door.message,
			    sizeof(door.message));
}

static void remove_directory(void)
{
	listener_free(door.listener);
	while (fx.writer.count > 0)
		answer_one(0, &(struct answer){.status = ANSWER_DATABASE_UNAVAILABLE});
	unlink(door.path);
	CU_ASSERT_EQUAL(rmdir(door.directory), 0);
	event_base_free(fx.base);
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void test_socket_name(void)
{
	struct stat st;
	mode_t before = umask(0077);
	int fd;

	make_directory();
	door.options.mode = 0666;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	umask(before);
	CU_ASSERT_EQUAL(lstat(door.path, &st), 0);
	CU_ASSERT_TRUE(S_ISSOCK(st.st_mode));
	CU_ASSERT_EQUAL(st.st_mode & 07777, 0666);
	fd = connect_to(door.path);
	CU_ASSERT_TRUE(fd >= 0);
	close(fd);
	listener_free(door.listener);
	door.listener = NULL;
	CU_ASSERT_EQUAL(lstat(door.path, &st), -1);
	remove_directory();
}

static void test_socket_group(void)
{
	struct stat st;

	if (geteuid() != 0) {
		tap_skip("only root can give a file to any group");
		return;
	}
	make_directory();
	door.options.group = GROUP;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	CU_ASSERT_EQUAL(lstat(door.path, &st), 0);
	CU_ASSERT_EQUAL(st.st_gid, GROUP);
	CU_ASSERT_EQUAL(st.st_mode & 07777, 0660);
	remove_directory();
}

/* A dead agent's socket is replaced, a live agent's is not. */
static void test_stale_and_live(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct listener *second = NULL;
	int fd;

	make_directory();
	strcpy(address.sun_path, door.path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	CU_ASSERT_EQUAL(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	CU_ASSERT_EQUAL(listener_new(&door.agent, &door.options, &second, door.message,
				     sizeof(door.message)),
			-EADDRINUSE);
	CU_ASSERT_PTR_NOT_NULL(strstr(door.message, "another agent serves"));
	fd = connect_to(door.path);
	CU_ASSERT_TRUE(fd >= 0);
	close(fd);
	remove_directory();
}

static void test_foreign_file(void)
{
	struct stat st;
	char linked[128];
	int fd;

	make_directory();
	fd = open(door.path, O_CREAT | O_WRONLY, 0600);
	CU_ASSERT_EQUAL(write(fd, "mine", 4), 4);
	close(fd);
	CU_ASSERT_EQUAL(listen_there(), -EEXIST);
	CU_ASSERT_EQUAL(stat(door.path, &st), 0);
	CU_ASSERT_EQUAL(st.st_size, 4);
	snprintf(linked, sizeof(linked), "%s/link", door.directory);
	CU_ASSERT_EQUAL(rename(door.path, linked), 0);
	CU_ASSERT_EQUAL(symlink(linked, door.path), 0);
	CU_ASSERT_EQUAL(listen_there(), -EEXIST);
	unlink(linked);
	CU_ASSERT_EQUAL(listen_there(), -EEXIST);
	remove_directory();
}

static void test_foreign_owner(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (geteuid() != 0) {
		tap_skip("only root can make another user's socket");
		return;
	}
	make_directory();
	strcpy(address.sun_path, door.path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	CU_ASSERT_EQUAL(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
	CU_ASSERT_EQUAL(lchown(door.path, OTHER_UID, (gid_t)-1), 0);
	CU_ASSERT_EQUAL(listen_there(), -EPERM);
	unlink(door.path);
	CU_ASSERT_EQUAL(chown(door.directory, OTHER_UID, (gid_t)-1), 0);
	CU_ASSERT_EQUAL(listen_there(), -EPERM);
	CU_ASSERT_EQUAL(chown(door.directory, 0, (gid_t)-1), 0);
	remove_directory();
}

static void test_bad_places(void)
{
	char deep[256];

	make_directory();
	chmod(door.directory, 0777);
	CU_ASSERT_EQUAL(listen_there(), -EPERM);
	chmod(door.directory, 01777);
	CU_ASSERT_EQUAL(listen_there(), 0);
	listener_free(door.listener);
	door.listener = NULL;
	snprintf(deep, sizeof(deep), "%s/none/io.cbshm", door.directory);
	door.options.path = deep;
	CU_ASSERT_EQUAL(listen_there(), -ENOENT);
	snprintf(deep, sizeof(deep), "%s/%s", door.directory, LONG_NAME);
	CU_ASSERT_EQUAL(listen_there(), -ENAMETOOLONG);
	door.options.path = "io.cbshm";
	CU_ASSERT_EQUAL(listen_there(), -EINVAL);
	remove_directory();
}

/* At the end only our own name goes. */
static void test_unlink_ours(void)
{
	struct stat st;

	make_directory();
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	unlink(door.path);
	close(open(door.path, O_CREAT | O_WRONLY, 0600));
	listener_free(door.listener);
	door.listener = NULL;
	CU_ASSERT_EQUAL(stat(door.path, &st), 0);
	remove_directory();
}

static void expect_refused(int fd)
{
	char *text = receive_from(fd);

	CU_ASSERT_PTR_NOT_NULL(text);
	CU_ASSERT_PTR_NOT_NULL(text != NULL ? strstr(text, "io.cbshm.LimitExceeded") : NULL);
	free(text);
	text = receive_from(fd);
	CU_ASSERT_PTR_NULL(text);
	free(text);
	close(fd);
}

static bool is_served(int fd)
{
	static const char text[] = "{\"method\":\"org.varlink.service.GetInfo\"}";
	char *reply;
	bool served;

	send_bytes(fd, text, sizeof(text));
	reply = receive_from(fd);
	served = reply != NULL && strstr(reply, "cbagent") != NULL;
	free(reply);
	return served;
}

static void test_total_limit(void)
{
	int first, second, third;

	make_directory();
	door.options.max_sessions = 2;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	first = connect_to(door.path);
	second = connect_to(door.path);
	CU_ASSERT_TRUE(is_served(first) && is_served(second));
	expect_refused(connect_to(door.path));
	CU_ASSERT_EQUAL(listener_counters(door.listener)->refused[LISTENER_REFUSED_TOTAL], 1);
	CU_ASSERT_EQUAL(listener_counters(door.listener)->sessions, 2);
	close(first);
	pump();
	third = connect_to(door.path);
	CU_ASSERT_TRUE(is_served(third));
	CU_ASSERT_EQUAL(listener_counters(door.listener)->accepted, 3);
	close(second);
	close(third);
	remove_directory();
}

/* No descriptor is left: clients hear of it, the loop does not spin, and it goes on afterwards. */
static void test_no_files(void)
{
	struct rlimit limit, low;
	int clients[4], held[64], count = 0;
	unsigned turns = 0;
	int64_t end;

	make_directory();
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	getrlimit(RLIMIT_NOFILE, &limit);
	for (int i = 0; i < 4; i++)
		clients[i] = connect_to(door.path);
	low = limit;
	low.rlim_cur = 64;
	setrlimit(RLIMIT_NOFILE, &low);
	while ((held[count] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		count++;
	expect_refused(clients[0]); /* closes one here: one more client gets in */
	for (end = now_ms() + 300; now_ms() < end; turns++) {
		event_base_loopexit(fx.base, &(struct timeval){.tv_usec = 20000});
		event_base_loop(fx.base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY);
	}
	CU_ASSERT_TRUE(turns < 100);
	while (count > 0)
		close(held[--count]);
	setrlimit(RLIMIT_NOFILE, &limit);
	CU_ASSERT_TRUE(listener_counters(door.listener)->refused[LISTENER_REFUSED_FILES] >= 1);
	CU_ASSERT_TRUE(is_served(clients[3]));
	for (int i = 1; i < 4; i++)
		close(clients[i]);
	remove_directory();
}

static void set_stopped(void *arg)
{
	*(bool *)arg = true;
}

static void test_listener_stop(void)
{
	static const char text[] = GET_STATE;
	struct stat st;
	char *reply;
	int fd, idle;

	make_directory();
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	idle = connect_to(door.path);
	fd = connect_to(door.path);
	CU_ASSERT_TRUE(is_served(idle));
	send_bytes(fd, text, sizeof(text));
	pump();
	CU_ASSERT_EQUAL_FATAL(fx.writer.count, 1);
	listener_stop(door.listener, set_stopped, &door.stopped);
	CU_ASSERT_FALSE(door.stopped);
	pump();
	CU_ASSERT_EQUAL(lstat(door.path, &st), -1);
	CU_ASSERT_PTR_NULL(receive_from(idle));
	CU_ASSERT_FALSE(door.stopped);
	answer_one(0, &(struct answer){.status = ANSWER_OK, .json = "{}"});
	reply = receive_from(fd);
	CU_ASSERT_PTR_NOT_NULL(reply);
	free(reply);
	pump();
	CU_ASSERT_TRUE(door.stopped);
	close(fd);
	close(idle);
	remove_directory();
}

static void test_listener_stop_idle(void)
{
	make_directory();
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	listener_stop(door.listener, set_stopped, &door.stopped);
	CU_ASSERT_FALSE(door.stopped);
	pump();
	CU_ASSERT_TRUE(door.stopped);
	remove_directory();
}

/* ---- other users ------------------------------------------------------------------------ */

/*
 * A child of another uid and these groups connects `connections` times and calls `method` on the
 * last connection; its exit status is 0 if the reply holds `expected`.
 */
static pid_t start_stranger(gid_t group, unsigned connections, const char *call_text,
			    const char *expected)
{
	pid_t child = child_fork();
	char reply[4096] = "";
	size_t size = 0;
	ssize_t got;
	int fd = -1;

	if (child != 0)
		return child;
	if (setgroups(1, &group) < 0 || setgid(OTHER_UID) < 0 || setuid(OTHER_UID) < 0)
		_exit(2);
	for (unsigned i = 0; i < connections; i++)
		fd = connect_to(door.path);
	if (fd < 0)
		_exit(3);
	send(fd, call_text, strlen(call_text) + 1, MSG_NOSIGNAL);
	while (size < sizeof(reply) - 1 && (got = recv(fd, reply + size, 1, 0)) == 1) {
		if (reply[size++] == '\0')
			break;
	}
	_exit(strstr(reply, expected) != NULL ? 0 : 4);
}

static int stranger(gid_t group, unsigned connections, const char *call_text, const char *expected)
{
	const int64_t end = now_ms() + WAIT_MS;
	pid_t child = start_stranger(group, connections, call_text, expected);
	int status = -1;

	while (now_ms() < end && waitpid(child, &status, WNOHANG) == 0) {
		pump();
		if (fx.writer.count > 0)
			answer_one(0, &(struct answer){.status = ANSWER_OK, .json = "{}"});
		usleep(1000);
	}
	pump();
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#define DISABLE "{\"method\":\"io.cbshm.Disable\",\"parameters\":{\"name\":\"a\",\"reason\":\"r\"}}"
#define INFO    "{\"method\":\"org.varlink.service.GetInfo\"}"

static void test_groups(void)
{
	if (geteuid() != 0) {
		tap_skip("only root can become another user");
		return;
	}
	make_directory();
	door.options.mode = 0666;
	door.options.group = GROUP;
	door.options.admin_group = ADMIN_GROUP;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	CU_ASSERT_EQUAL(stranger(7, 1, INFO, "cbagent"), 0);
	CU_ASSERT_EQUAL(stranger(7, 1, GET_STATE, "io.cbshm.PermissionDenied"), 0);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, GET_STATE, "\"state\""), 0);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, DISABLE, "io.cbshm.PermissionDenied"), 0);
	CU_ASSERT_EQUAL(stranger(ADMIN_GROUP, 1, DISABLE, "\"changed\""), 0);
	remove_directory();
}

/* The segment's own group and mode decide, not those of the socket. */
static void test_segment_group(void)
{
	int fd;

	if (geteuid() != 0) {
		tap_skip("only root can become another user");
		return;
	}
	make_directory();
	door.options.mode = 0666;
	door.options.admin_group = ADMIN_GROUP;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	fd = make_segment(0640);
	CU_ASSERT_EQUAL(fchown(fd, 0, GROUP), 0);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, GET_SEGMENT, "\"descriptor\""), 0);
	CU_ASSERT_EQUAL(stranger(ADMIN_GROUP, 1, GET_SEGMENT, "io.cbshm.PermissionDenied"), 0);
	CU_ASSERT_EQUAL(fchmod(fd, 0604), 0);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, GET_SEGMENT, "io.cbshm.PermissionDenied"), 0);
	CU_ASSERT_EQUAL(stranger(7, 1, GET_SEGMENT, "\"descriptor\""), 0);
	CU_ASSERT_EQUAL(fchown(fd, OTHER_UID, GROUP), 0);
	CU_ASSERT_EQUAL(stranger(7, 1, GET_SEGMENT, "\"descriptor\""), 0);
	CU_ASSERT_EQUAL(fchmod(fd, 0044), 0);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, GET_SEGMENT, "io.cbshm.PermissionDenied"), 0);
	close(fd);
	unlink(segment_path);
	remove_directory();
}

/*
 * The kernel counts the descriptors under way per user and lets root have any number, so this is another user: its limit is full,
 * as somebody has not received a good many, and the next who asks hears of it.
 */
static int hand_out_beyond_limit(void)
{
	const struct rlimit few = {16, 16};
	struct fault fault = {.error = REPLY_OK};
	const struct peer peer = {.uid = OTHER_UID, .user = "o"};
	bool unreceived = false;
	int pair[2];

	if (setgroups(0, NULL) < 0 || setgid(OTHER_UID) < 0 || setuid(OTHER_UID) < 0)
		return 2;
	setrlimit(RLIMIT_NOFILE, &few);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
		return 3;
	for (int i = 0; i < 100; i++) {
		unreceived = false;
		switch (handout_send(&fx.segment, pair[0], &peer, &unreceived, &fault)) {
		case HANDOUT_SENT:
			continue;
		case HANDOUT_REFUSED:
			return i > 10 && fault.error == REPLY_LIMIT_EXCEEDED &&
					       strstr(fault.message, "on their way") != NULL
				       ? 0
				       : 4;
		default:
			return 5;
		}
	}
	return 6;
}

static void test_handout_limit(void)
{
	int status = -1;
	pid_t child;

	if (geteuid() != 0) {
		tap_skip("only root can become another user");
		return;
	}
	memset(&fx, 0, sizeof(fx));
	fx.segment.path = "/etc/passwd"; /* which all may read */
	child = child_fork();
	if (child == 0)
		_exit(hand_out_beyond_limit());
	CU_ASSERT_EQUAL(waitpid(child, &status, 0), child);
	CU_ASSERT_EQUAL(status, 0);
}

static void test_mode_keeps_out(void)
{
	if (geteuid() != 0) {
		tap_skip("only root can become another user");
		return;
	}
	make_directory();
	door.options.group = GROUP;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	CU_ASSERT_EQUAL(stranger(7, 1, INFO, ""), 3);
	CU_ASSERT_EQUAL(stranger(GROUP, 1, INFO, "cbagent"), 0);
	remove_directory();
}

static void test_per_uid_limit(void)
{
	int fd;

	if (geteuid() != 0) {
		tap_skip("only root can become another user");
		return;
	}
	make_directory();
	door.options.mode = 0666;
	door.options.max_per_uid = 3;
	CU_ASSERT_EQUAL_FATAL(listen_there(), 0);
	CU_ASSERT_EQUAL(stranger(7, 3, INFO, "cbagent"), 0);
	CU_ASSERT_EQUAL(stranger(7, 4, INFO, "io.cbshm.LimitExceeded"), 0);
	CU_ASSERT_EQUAL(listener_counters(door.listener)->refused[LISTENER_REFUSED_PER_UID], 1);
	/* They are gone; and root is not counted. */
	CU_ASSERT_EQUAL(listener_counters(door.listener)->sessions, 0);
	for (int i = 0; i < 5; i++) {
		fd = connect_to(door.path);
		CU_ASSERT_TRUE(is_served(fd));
		if (i > 0)
			close(fd);
	}
	remove_directory();
}

/* ---- log -------------------------------------------------------------------------------- */

static void test_log_value(void)
{
	struct log_value room;
	char text[2 * LOG_VALUE_SIZE];

	CU_ASSERT_STRING_EQUAL(log_value(&room, "plain/text"), "plain/text");
	CU_ASSERT_STRING_EQUAL(log_value(&room, ""), "\"\"");
	CU_ASSERT_STRING_EQUAL(log_value(&room, NULL), "\"\"");
	CU_ASSERT_STRING_EQUAL(log_value(&room, "a b"), "\"a b\"");
	CU_ASSERT_STRING_EQUAL(log_value(&room, "a=\"\\\n\t\r\x01"),
			       "\"a=\\\"\\\\\\n\\t\\r\\x01\"");
	for (size_t length = LOG_VALUE_SIZE - 8; length < sizeof(text); length++) {
		memset(text, '\x02', length);
		text[length] = '\0';
		CU_ASSERT_TRUE(strlen(log_value(&room, text)) < LOG_VALUE_SIZE);
		CU_ASSERT_STRING_EQUAL(room.text + strlen(room.text) - 4, "...\"");
		memset(text, 'x', length);
		CU_ASSERT_TRUE(strlen(log_value(&room, text)) < LOG_VALUE_SIZE);
	}
}

static const CU_TestInfo session_tests[] = {
	{"introspection", test_introspection},
	{"replies keep the order of calls", test_order},
	{"calls do not overtake", test_no_overtaking},
	{"1024 calls under way, the next wait", test_pipeline_limit},
	{"oneway calls get no reply", test_oneway},
	{"more and upgrade are refused", test_more_and_upgrade},
	{"a message byte by byte", test_byte_by_byte},
	{"Subscribe: flags and arguments", test_subscribe_flags},
	{"Subscribe: to all", test_subscribe_all},
	{"Subscribe: to names", test_subscribe_names},
	{"Subscribe: to nothing yet", test_subscribe_empty},
	{"Subscribe: order", test_subscribe_order},
	{"Subscribe: a slow reader", test_subscribe_slowly},
	{"Subscribe: too slow for what is gone", test_subscribe_behind},
	{"Subscribe: stop", test_subscribe_stop},
	{"GetSegment", test_handout},
	{"GetSegment: refused", test_handout_refused},
	{"GetSegment: not received", test_handout_unreceived},
	{"GetSegment: no file descriptor left", test_handout_no_files},
	{"GetSegment: order", test_handout_in_order},
	{"GetSegment: before Subscribe", test_handout_before_subscription},
	{"GetSegment: a full socket", test_handout_full_socket},
	{"a loop that was held up", test_held_up},
	{"malformed messages", test_malformed},
	{"a malformed message after good ones", test_malformed_in_order},
	{"nesting", test_nesting},
	{"message size", test_size},
	{"wrong arguments name their field", test_wrong_arguments},
	{"reports", test_reports},
	{"reports without a tree", test_report_texts},
	{"reports without a tree: mutations", test_report_mutations},
	{"decisions", test_decisions},
	{"reads and policy", test_reads_and_policy},
	{"size of details", test_details_size},
	{"access by method", test_access},
	{"answers that are errors", test_answers},
	{"replies", test_replies},
	{"incidents that do not fit", test_incidents_too_long},
	{"List: pages", test_list_pages},
	{"List: size of a page", test_list_size},
	{"List: a state", test_list_state},
	{"half-closed", test_half_close},
	{"end within a message", test_end_within_message},
	{"client gone", test_client_gone},
	{"requests outlive a session", test_orphans},
	{"last words", test_last_words},
	{"a peer that does not read", test_stall},
	{"much output for one that does", test_much_output},
	{"too much output", test_too_much_output},
	{"stop", test_stop},
	CU_TEST_INFO_NULL,
};

static const CU_TestInfo listener_tests[] = {
	{"the socket's mode, whatever the umask", test_socket_name},
	{"the socket's group", test_socket_group},
	{"stale and live sockets", test_stale_and_live},
	{"foreign files stay", test_foreign_file},
	{"foreign owners", test_foreign_owner},
	{"bad places", test_bad_places},
	{"only our own name is removed", test_unlink_ours},
	{"total limit", test_total_limit},
	{"no file descriptor left", test_no_files},
	{"stop answers what is under way", test_listener_stop},
	{"stop without clients", test_listener_stop_idle},
	{"groups of the peer", test_groups},
	{"who may have the segment", test_segment_group},
	{"too many descriptors under way", test_handout_limit},
	{"the mode keeps others out", test_mode_keeps_out},
	{"limit per user", test_per_uid_limit},
	CU_TEST_INFO_NULL,
};

static const CU_TestInfo log_tests[] = {
	{"values are quoted", test_log_value},
	CU_TEST_INFO_NULL,
};

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	log_set_level(LOG_LEVEL_ERROR);
	CU_initialize_registry();
	tap_add_suite("session", session_tests);
	tap_add_suite("listener", listener_tests);
	tap_add_suite("log", log_tests);
	return tap_run_cunit();
}
