/*
 * test_client.c - the write side of the library, against a server that misbehaves on command
 *
 * SPDX-License-Identifier: ISC
 *
 * Who waits for an answer; for the reports that nobody waits for see test_reports.c.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "cbshm.h"
#include "tests/support/child.h"
#include "tests/support/fake_agent.h"
#include "tests/support/tap.h"

/* ---- the client ------------------------------------------------------------------------- */

static struct cbshm *client_at(const char *path)
{
	struct cbshm_options options = {
		.size = sizeof(options), .segment = server.segment, .socket = path};
	struct cbshm *client = NULL;

	CU_ASSERT_EQUAL_FATAL(cbshm_open(&options, &client), 0);
	return client;
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int open_files(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(directory) != NULL)
		count++;
	closedir(directory);
	return count;
}

/* A parameter of a received message; the caller deletes *root. */
static const cJSON *sent(int message, const char *name, cJSON **root)
{
	for (int i = 0; i < 200 && server.received <= message; i++)
		poll(NULL, 0, 10);
	*root = server.received > message ? cJSON_Parse(server.messages[message]) : NULL;
	return cJSON_GetObjectItem(cJSON_GetObjectItem(*root, "parameters"), name);
}

static char *sent_text(int message, const char *name)
{
	cJSON *root;
	const char *text = cJSON_GetStringValue(sent(message, name, &root));
	char *copy = strdup(text != NULL ? text : "");

	cJSON_Delete(root);
	return copy;
}

static double sent_number(int message, const char *name)
{
	cJSON *root;
	const cJSON *item = sent(message, name, &root);
	const double value = cJSON_IsNumber(item) ? item->valuedouble : NAN;

	cJSON_Delete(root);
	return value;
}

static void expect_in(const char *text, const char *part)
{
	CU_ASSERT_PTR_NOT_NULL(strstr(text, part));
	if (strstr(text, part) == NULL)
		tap_note("\"%s\" is not in: %s", part, text);
}

/* ---- what is sent ----------------------------------------------------------------------- */

static void test_report(void)
{
	SERVE({REPLY, NO_INCIDENT}, {REPLY, "{\"parameters\":{\"incident\":" INCIDENT "}}"},
	      {REPLY, "{\"parameters\":{}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {.timeout_ms = 2000, .message = "old"};
	char tripped[CBSHM_UUID_SIZE] = "x";
	const double score = nextafter(0.2, 1);

	CU_ASSERT_EQUAL(
		cbshm_report_drift(client, "caf\u00e9", score, INT64_C(9007199254740991),
				   " {\"a\": \"\\u00e9\\n \", \"n\": [12345678901234567890, "
				   "0.1000000000000000055511151231257827]}\n",
				   &call, tripped),
		0);
	CU_ASSERT_STRING_EQUAL(tripped, "");
	CU_ASSERT_STRING_EQUAL(call.message, "");
	expect_in(server.messages[0], "\"method\":\"io.cbshm.ReportDrift\"");
	expect_in(server.messages[0], "\"sample_count\":9007199254740991");
	expect_in(server.messages[0],
		  "\"details\":{\"a\":\"\\u00e9\\n \",\"n\":[12345678901234567890,"
		  "0.1000000000000000055511151231257827]}");
	CU_ASSERT_TRUE(sent_number(0, "drift_score") == score);
	CU_ASSERT_TRUE(sent_number(0, "timeout_ms") > 1500 && sent_number(0, "timeout_ms") <= 2000);

	CU_ASSERT_EQUAL(cbshm_report_schema_error(client, "b", 0, NULL, NULL, tripped), 0);
	CU_ASSERT_STRING_EQUAL(tripped, UUID);
	expect_in(server.messages[1], "\"method\":\"io.cbshm.ReportSchemaError\"");
	CU_ASSERT_TRUE(sent_number(1, "count") == 0);
	CU_ASSERT_EQUAL(cbshm_report_schema_error(client, "b", 1, NULL, NULL, NULL), 0);
	CU_ASSERT_EQUAL(server.accepted, 1);
	cbshm_close(client);
	server_end();
}

#define POLICY                                                                           \
	"{\"drift_threshold\":0.3,\"failure_threshold\":4,\"schema_error_threshold\":6," \
	"\"default_ttl_seconds\":0.5,\"auto_recover\":false}"

/* A program may have set a locale that writes 0,25. */
static void test_locale(void)
{
	static const char *const commas[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "fr_FR"};
	size_t i = 0;

	while (i < 4 && setlocale(LC_NUMERIC, commas[i]) == NULL)
		i++;
	if (i == 4) {
		tap_skip("no locale with a decimal comma is installed");
		return;
	}
	SERVE({REPLY, "{\"parameters\":{\"policy\":" POLICY "}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_policy policy = {.drift_threshold = 0.25};

	CU_ASSERT_EQUAL(cbshm_set_policy(client, "b", &policy, CBSHM_POLICY_DRIFT_THRESHOLD, 0,
					 NULL, NULL, &policy),
			0);
	setlocale(LC_NUMERIC, "C");
	expect_in(server.messages[0], "{\"drift_threshold\":0.25}");
	CU_ASSERT_TRUE(policy.drift_threshold == 0.3);
	cbshm_close(client);
	server_end();
}

static void test_decisions(void)
{
	SERVE({REPLY, CHANGED});
	struct cbshm *client = client_at(server.path);
	char incident[CBSHM_UUID_SIZE], *text;
	bool changed = false;

	CU_ASSERT_EQUAL(cbshm_disable(client, "b", "why\n\tnot", "ann", INT64_C(1795467600000001),
				      0, NULL, &changed, incident),
			0);
	CU_ASSERT_TRUE(changed);
	text = sent_text(0, "until");
	CU_ASSERT_STRING_EQUAL(text, "2026-11-23T21:00:00.000001Z");
	free(text);
	text = sent_text(0, "request_id");
	CU_ASSERT_EQUAL(strlen(text), 36);
	free(text);
	CU_ASSERT_EQUAL(
		cbshm_disable(client, "b", "r", NULL, CBSHM_UNTIL_NEVER, 0, NULL, NULL, NULL), 0);
	text = sent_text(1, "until");
	CU_ASSERT_STRING_EQUAL(text, "never");
	free(text);
	CU_ASSERT_PTR_NULL(strstr(server.messages[1], "\"by\""));
	CU_ASSERT_EQUAL(cbshm_disable(client, "b", "r", NULL, 0, 90000001, NULL, NULL, NULL), 0);
	CU_ASSERT_TRUE(fabs(sent_number(2, "ttl_seconds") - 90.000001) < 1e-9);
	CU_ASSERT_PTR_NULL(strstr(server.messages[2], "until"));
	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, NULL, NULL), 0);
	expect_in(server.messages[3], "io.cbshm.Enable");
	CU_ASSERT_EQUAL(cbshm_reset(client, "b", "ann", "fixed", NULL, &changed), 0);
	expect_in(server.messages[4], "io.cbshm.Reset");
	expect_in(server.messages[4], "\"reason\":\"fixed\"");
	cbshm_close(client);
	server_end();
}

static void test_policy(void)
{
	SERVE({REPLY, "{\"parameters\":{\"policy\":" POLICY "}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_policy policy = {.drift_threshold = 0.3, .default_ttl_us = 500000}, result;

	CU_ASSERT_EQUAL(cbshm_set_policy(client, "b", &policy,
					 CBSHM_POLICY_DRIFT_THRESHOLD | CBSHM_POLICY_DEFAULT_TTL,
					 CBSHM_POLICY_AUTO_RECOVER, "ann", NULL, &result),
			0);
	expect_in(server.messages[0], "\"default_ttl_seconds\":0.5}");
	expect_in(server.messages[0], "\"clear\":[\"auto_recover\"]");
	CU_ASSERT_EQUAL(result.failure_threshold, 4);
	CU_ASSERT_EQUAL(result.schema_error_threshold, 6);
	CU_ASSERT_EQUAL(result.default_ttl_us, 500000);
	CU_ASSERT_FALSE(result.auto_recover);
	CU_ASSERT_EQUAL(cbshm_set_policy(client, NULL, NULL, 0, 0, NULL, NULL, &result), 0);
	CU_ASSERT_PTR_NULL(strstr(server.messages[1], "set\""));
	CU_ASSERT_PTR_NULL(strstr(server.messages[1], "name"));
	cbshm_close(client);
	server_end();
}

static void test_incidents(void)
{
	SERVE({REPLY, "{\"parameters\":{\"incidents\":[" INCIDENT "," INCIDENT "]}}"},
	      {REPLY, "{\"parameters\":{\"incidents\":[]}}"},
	      {REPLY, " {\"x\":[\"}\",{}],\"parameters\" : {\"y\":\":\",\"incidents\": "
		      "[" INCIDENT_WITH("{}") ", " INCIDENT_WITH(
			      "{ \"n\" : 12345678901234567890 ,\"b\": \"a \\\" ]\" }") "]}}"},
	      {REPLY, "{\"parameters\":{\"incidents\":[" INCIDENT_WITH("[]") "]}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_incident *incidents;
	size_t count;

	CU_ASSERT_EQUAL(cbshm_get_incidents(client, NULL, true, 0, NULL, &incidents, &count), 0);
	CU_ASSERT_EQUAL_FATAL(count, 2);
	CU_ASSERT_STRING_EQUAL(incidents[1].id, UUID);
	CU_ASSERT_STRING_EQUAL(incidents[1].details, "{\"a\":[1,\"x\"]}");
	CU_ASSERT_STRING_EQUAL(incidents[1].severity, "P1");
	CU_ASSERT_EQUAL(incidents[1].timestamp, INT64_C(1795467600000000));
	CU_ASSERT_EQUAL(incidents[1].resolved_at, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(incidents[1].sample_count, 7);
	CU_ASSERT_TRUE(sent_number(0, "limit") == 10);
	cbshm_incidents_free(incidents, count);
	CU_ASSERT_EQUAL(cbshm_get_incidents(client, "b", false, 5, NULL, &incidents, &count), 0);
	CU_ASSERT_EQUAL(count, 0);
	CU_ASSERT_PTR_NULL(incidents);
	cbshm_incidents_free(NULL, 0);
	/* Digit by digit, and without blanks; not everything is an object. */
	CU_ASSERT_EQUAL(cbshm_get_incidents(client, NULL, true, 0, NULL, &incidents, &count), 0);
	CU_ASSERT_EQUAL_FATAL(count, 2);
	CU_ASSERT_STRING_EQUAL(incidents[0].details, "{}");
	CU_ASSERT_STRING_EQUAL(incidents[1].details,
			       "{\"n\":12345678901234567890,\"b\":\"a \\\" ]\"}");
	cbshm_incidents_free(incidents, count);
	CU_ASSERT_EQUAL(cbshm_get_incidents(client, NULL, true, 0, NULL, &incidents, &count),
			CBSHM_ERR_PROTOCOL);
	cbshm_close(client);
	server_end();
}

#define STATE(until, recover)                                                                     \
	"{\"parameters\":{\"state\":{\"name\":\"b\",\"is_open\":true,\"opened_at\":"              \
	"\"2026-11-23T21:00:00Z\",\"reason\":\"r\",\"incident_id\":\"" UUID "\","                 \
	"\"consecutive_failures\":2,\"last_failure_at\":null,\"disabled_until\":" until           \
	",\"disabled_by\":\"ann\",\"version\":17,\"updated_at\":\"2026-11-23T21:00:00Z\","        \
	"\"policy\":{\"drift_threshold\":0.3,\"failure_threshold\":4,\"schema_error_threshold\":" \
	"6,\"default_ttl_seconds\":0.5,\"auto_recover\":" recover "}}}}"

/* As in the segment: what does not fit is cut between characters, and flagged. */
static void test_long_reason(void)
{
	static char text[4000];
	static struct step script[] = {{REPLY, text}};
	char reason[700] = "a";
	struct cbshm_state state;

	for (int i = 0; i < 200; i++)
		strcat(reason, "\u20ac");
	snprintf(text, sizeof(text),
		 "{\"parameters\":{\"state\":{\"name\":\"b\",\"is_open\":true,\"reason\":\"%s\","
		 "\"consecutive_failures\":0,\"version\":1,\"policy\":" POLICY "}}}",
		 reason);
	server_begin(script, 1);
	struct cbshm *client = client_at(server.path);

	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), 0);
	CU_ASSERT_EQUAL(strlen(state.disabled_reason), 238);
	CU_ASSERT_EQUAL(strncmp(state.disabled_reason, reason, 238), 0);
	CU_ASSERT_EQUAL(state.flags, CBSHM_STATE_REASON_CUT);
	cbshm_close(client);
	server_end();
}

static void test_state(void)
{
	SERVE({REPLY, STATE("null", "true")}, {REPLY, STATE("\"2001-01-01T00:00:00Z\"", "true")},
	      {REPLY, STATE("\"2001-01-01T00:00:00Z\"", "false")},
	      {REPLY, STATE("\"9001-01-01T00:00:00Z\"", "true")},
	      {REPLY, "{\"error\":\"io.cbshm.NotFound\",\"parameters\":{\"name\":\"b\",\"message\":"
		      "\"no such\"}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_state state;
	struct cbshm_call call = {0};

	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), 0);
	CU_ASSERT_TRUE(state.disabled && state.row_disabled);
	CU_ASSERT_EQUAL(state.remaining_us, CBSHM_NO_TIME);
	CU_ASSERT_EQUAL(state.version, 17);
	CU_ASSERT_STRING_EQUAL(state.disabled_by, "ann");
	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), 0);
	CU_ASSERT_TRUE(!state.disabled && state.row_disabled && state.remaining_us == 0);
	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), 0);
	CU_ASSERT_TRUE(state.disabled);
	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), 0);
	CU_ASSERT_TRUE(state.disabled && state.remaining_us > 0);
	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", &call, &state), CBSHM_ERR_NOT_FOUND);
	CU_ASSERT_STRING_EQUAL(call.message, "no such");
	cbshm_close(client);
	server_end();
}

#define AGENT_OF(name)                                                                   \
	"{\"host\":\"" name "\",\"instance\":\"i\",\"version\":\"0.0.9\",\"live\":true," \
	"\"last_seen_at\":\"2001-01-01T00:00:00Z\"}"
#define FLEET(in_force, slowest, behind)                                 \
	"{\"parameters\":{\"fleet\":{\"hosts\":2,\"in_force\":" in_force \
	",\"slowest_ms\":" slowest ",\"behind\":[" behind "],\"silent\":[" AGENT_OF("s") "]}}}"

static void test_fleet(void)
{
	SERVE({REPLY, FLEET("2", "1.5", "")}, {REPLY, FLEET("1", "null", AGENT_OF("web7"))},
	      {REPLY, FLEET("1", "null", "{\"host\":7}")}, {REPLY, "{\"parameters\":{}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};
	struct cbshm_fleet fleet;

	CU_ASSERT_EQUAL(cbshm_wait_fleet(client, NULL, &fleet), 0);
	CU_ASSERT_TRUE(fleet.hosts == 2 && fleet.in_force == 2 && fleet.slowest_ms == 1.5);
	CU_ASSERT_TRUE(fleet.behind == NULL && fleet.behind_count == 0 && fleet.silent_count == 1);
	CU_ASSERT_STRING_EQUAL(fleet.silent[0].host, "s");
	cbshm_fleet_free(&fleet);
	CU_ASSERT_EQUAL(cbshm_wait_fleet(client, &call, &fleet), CBSHM_ERR_BEHIND);
	CU_ASSERT_PTR_NOT_NULL(strstr(call.message, "1 of 2 hosts have it; web7/i has not"));
	CU_ASSERT_TRUE(isnan(fleet.slowest_ms) && fleet.behind_count == 1);
	CU_ASSERT_EQUAL(fleet.behind[0].last_seen_at, INT64_C(978307200000000));
	cbshm_fleet_free(&fleet);
	CU_ASSERT_EQUAL(cbshm_wait_fleet(client, &call, &fleet), CBSHM_ERR_PROTOCOL);
	cbshm_fleet_free(&fleet);
	CU_ASSERT_EQUAL(cbshm_wait_fleet(client, &call, &fleet), CBSHM_ERR_PROTOCOL);
	cbshm_fleet_free(&fleet);
	cbshm_fleet_free(NULL);
	cbshm_close(client);
	server_end();
}

static void test_call_json(void)
{
	SERVE({REPLY, "{\"parameters\":{\"agents\":[]}}"}, {REPLY, "{}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};
	char *reply;

	CU_ASSERT_EQUAL(cbshm_call_json(client, "GetAgents", "{\"limit\":5}", &call, &reply), 0);
	CU_ASSERT_STRING_EQUAL(reply, "{\"agents\":[]}");
	free(reply);
	CU_ASSERT_EQUAL(cbshm_call_json(client, "GetAgents", NULL, &call, &reply), 0);
	CU_ASSERT_STRING_EQUAL(reply, "{}");
	free(reply);
	CU_ASSERT_EQUAL(cbshm_call_json(client, "GetLog", "[]", &call, &reply), CBSHM_ERR_INVALID);
	CU_ASSERT_PTR_NULL(reply);
	CU_ASSERT_EQUAL(cbshm_call_json(client, "GetLog", "{", &call, &reply), CBSHM_ERR_INVALID);
	cbshm_close(client);
	server_end();
}

/* ---- what is refused here --------------------------------------------------------------- */

static struct cbshm_call invalid_call;

static void refused(int error, const char *field)
{
	CU_ASSERT_EQUAL(error, CBSHM_ERR_INVALID);
	expect_in(invalid_call.message, field);
	memset(&invalid_call, 0, sizeof(invalid_call));
}

#define DRIFT(name, score, samples, details) \
	cbshm_report_drift(client, name, score, samples, details, &invalid_call, NULL)
#define DISABLE(reason, by, until, for_us) \
	cbshm_disable(client, "b", reason, by, until, for_us, &invalid_call, NULL, NULL)

/* Nowhere to put the answer, or no method: said like any other bad argument. */
static void refuse_nowhere(struct cbshm *client)
{
	struct cbshm_incident *incidents;
	size_t count = 7;
	char *reply;

	refused(cbshm_get_incidents(client, "b", false, 1, &invalid_call, NULL, &count),
		"incidents");
	CU_ASSERT_EQUAL(count, 0);
	refused(cbshm_get_incidents(client, "b", false, 1, &invalid_call, &incidents, NULL),
		"count");
	CU_ASSERT_PTR_NULL(incidents);
	refused(cbshm_fetch_state(client, "b", &invalid_call, NULL), "state");
	refused(cbshm_wait_fleet(client, &invalid_call, NULL), "fleet");
	refused(cbshm_call_json(client, "GetLog", NULL, &invalid_call, NULL), "reply");
	refused(cbshm_call_json(client, NULL, NULL, &invalid_call, &reply), "method");
	CU_ASSERT_PTR_NULL(reply);
	CU_ASSERT_EQUAL(cbshm_wait_fleet(client, NULL, NULL), CBSHM_ERR_INVALID);
}

static void refuse_reports(struct cbshm *client)
{
	static char deep[256], large[40000], name[130];

	memset(name, 'n', 129);
	refused(DRIFT(NULL, 0.5, 1, NULL), "name");
	refused(DRIFT("", 0.5, 1, NULL), "name");
	refused(DRIFT(name, 0.5, 1, NULL), "name");
	refused(DRIFT("a\nb", 0.5, 1, NULL), "name");
	refused(DRIFT("a\xff", 0.5, 1, NULL), "name");
	refused(DRIFT("a\xc2\x85", 0.5, 1, NULL), "name");
	refused(DRIFT("b", -0.1, 1, NULL), "score");
	refused(DRIFT("b", 1.0000001, 1, NULL), "score");
	refused(DRIFT("b", NAN, 1, NULL), "score");
	refused(DRIFT("b", INFINITY, 1, NULL), "score");
	refused(DRIFT("b", 0.5, 0, NULL), "samples");
	refused(DRIFT("b", 0.5, INT64_MAX, NULL), "samples");
	refused(DRIFT("b", 0.5, 1, ""), "details");
	refused(DRIFT("b", 0.5, 1, "{"), "details");
	refused(DRIFT("b", 0.5, 1, "[]"), "details");
	refused(DRIFT("b", 0.5, 1, "{} x"), "details");
	refused(DRIFT("b", 0.5, 1, "{\"a\":\"\xff\"}"), "details");
	refused(DRIFT("b", 0.5, 1, "{\"a\":\"\\u0000\"}"), "details");
	refused(DRIFT("b", 0.5, 1, "{\"a\":1e999}"), "details");
	refused(DRIFT("b", 0.5, 1, "{\"a\":01}"), "details");
	refused(DRIFT("b", 0.5, 1, "{\"a\":\"\n\"}"), "details");
	for (int i = 0; i < 80; i++)
		strcat(deep, i == 0 ? "{\"a\":" : "[");
	for (int i = 0; i < 80; i++)
		strcat(deep, i < 79 ? "]" : "}");
	refused(DRIFT("b", 0.5, 1, deep), "details");
	memset(large, ' ', sizeof(large) - 1);
	large[0] = '{';
	large[32768] = '}';
	large[32769] = '\0';
	refused(DRIFT("b", 0.5, 1, large), "details");
	refused(cbshm_report_schema_error(client, "b", -1, NULL, &invalid_call, NULL), "count");
	invalid_call.timeout_ms = -1;
	refused(DRIFT("b", 0.5, 1, NULL), "timeout_ms");
	invalid_call.timeout_ms = 3600001;
	refused(DRIFT("b", 0.5, 1, NULL), "timeout_ms");
}

static void refuse_decisions(struct cbshm *client)
{
	static char reason[1026], by[130];
	struct cbshm_incident *incidents;
	size_t count;

	memset(reason, 'r', 1025);
	memset(by, 'b', 129);
	refused(DISABLE(NULL, NULL, 0, 0), "reason");
	refused(DISABLE("", NULL, 0, 0), "reason");
	refused(DISABLE(reason, NULL, 0, 0), "reason");
	refused(DISABLE("\x1b[31m", NULL, 0, 0), "reason");
	refused(DISABLE("\xc3", NULL, 0, 0), "reason");
	refused(DISABLE("r", "", 0, 0), "by");
	refused(DISABLE("r", by, 0, 0), "by");
	refused(DISABLE("r", "a\nb", 0, 0), "by");
	refused(DISABLE("r", NULL, -1, 0), "until");
	refused(DISABLE("r", NULL, INT64_MAX - 1, 0), "until");
	refused(DISABLE("r", NULL, 0, -1), "for_us");
	refused(DISABLE("r", NULL, 0, INT64_MAX), "for_us");
	refused(DISABLE("r", NULL, 1, 1), "exclude");
	refused(cbshm_enable(client, "b", "\x01", NULL, &invalid_call, NULL), "by");
	refused(cbshm_enable(client, "b", NULL, "", &invalid_call, NULL), "reason");
	refused(cbshm_get_incidents(client, "b", false, 1001, &invalid_call, &incidents, &count),
		"limit");
	CU_ASSERT_PTR_NULL(incidents);
}

static void refuse_policies(struct cbshm *client)
{
	struct cbshm_policy policy = {.drift_threshold = 2, .default_ttl_us = -1};

#define SET(name, set, clear) \
	cbshm_set_policy(client, name, &policy, set, clear, NULL, &invalid_call, NULL)
	refused(SET("b", CBSHM_POLICY_DRIFT_THRESHOLD, 0), "drift_threshold");
	refused(SET("b", CBSHM_POLICY_FAILURE_THRESHOLD, 0), "failure_threshold");
	refused(SET("b", CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD, 0), "schema_error_threshold");
	refused(SET("b", CBSHM_POLICY_DEFAULT_TTL, 0), "default_ttl_us");
	refused(SET("b", 0x20, 0), "set and clear");
	refused(SET("b", 1, 1), "set and clear");
	refused(SET(NULL, 0, 1), "fleet");
	refused(cbshm_set_policy(client, "b", NULL, 1, 0, NULL, &invalid_call, NULL), "policy");
}

static void test_invalid(void)
{
	SERVE({REPLY, CHANGED});
	struct cbshm *client = client_at(server.path);

	refuse_nowhere(client);
	refuse_reports(client);
	refuse_decisions(client);
	refuse_policies(client);
	CU_ASSERT_EQUAL(server.accepted, 0);
	cbshm_close(client);
	server_end();
}

/* ---- what the agent answers ------------------------------------------------------------- */

static void test_errors(void)
{
#define ERROR(name) {REPLY, "{\"error\":\"" name "\",\"parameters\":{\"message\":\"so it is\"}}"}
	SERVE(ERROR("io.cbshm.InvalidArgument"), ERROR("io.cbshm.NotFound"),
	      ERROR("io.cbshm.PermissionDenied"), ERROR("io.cbshm.DatabaseUnavailable"),
	      ERROR("io.cbshm.Busy"), ERROR("io.cbshm.Timeout"), ERROR("io.cbshm.LimitExceeded"),
	      ERROR("io.cbshm.DatabaseError"), ERROR("io.cbshm.OutcomeUnknown"));
	static const int expected[] = {
		CBSHM_ERR_INVALID,       CBSHM_ERR_NOT_FOUND, CBSHM_ERR_DENIED,
		CBSHM_ERR_DATABASE_DOWN, CBSHM_ERR_BUSY,      CBSHM_ERR_TIMEOUT,
		CBSHM_ERR_REFUSED,       CBSHM_ERR_REFUSED,   CBSHM_ERR_UNKNOWN};
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};

	for (size_t i = 0; i < sizeof(expected) / sizeof(*expected); i++) {
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
				expected[i]);
		expect_in(call.message, "so it is");
	}
	/* One connection for all, but for those that were refused on: the agent may be closing them. */
	CU_ASSERT_EQUAL(server.accepted, 3);
	cbshm_close(client);
	server_end();
}

/* What the agent has not taken up has an outcome: nothing was done. */
static void test_not_taken_up(void)
{
	SERVE({REPLY, "{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":"
		      "{\"method\":\"io.cbshm.Explode\"}}"},
	      {REPLY, "{\"error\":\"org.varlink.service.InterfaceNotFound\",\"parameters\":"
		      "{\"interface\":\"io.cbshm.a\"}}"},
	      {REPLY, "{\"error\":\"org.varlink.service.ExpectedMore\"}"},
	      ERROR("io.cbshm.Malformed"));
	static const struct {
		const char *method, *says;
		int error;
	} calls[] = {
		{"Explode", "io.cbshm.Explode: the agent does not have", CBSHM_ERR_INVALID},
		{"a.Explode", "io.cbshm.a: the agent does not have", CBSHM_ERR_INVALID},
		{"Subscribe", "cbshm_subscribe()", CBSHM_ERR_INVALID},
		{"SetPolicy", "so it is", CBSHM_ERR_PROTOCOL},
	};
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};
	char *reply;

	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		CU_ASSERT_EQUAL(cbshm_call_json(client, calls[i].method, NULL, &call, &reply),
				calls[i].error);
		CU_ASSERT_PTR_NULL(reply);
		expect_in(call.message, calls[i].says);
	}
	CU_ASSERT_EQUAL(server.received, 4);
	cbshm_close(client);
	server_end();
}

/* A long message is cut, but never within a character. */
static void test_long_message(void)
{
	static char text[2000] = "{\"error\":\"io.cbshm.Busy\",\"parameters\":{\"message\":\"ab";
	static struct step script[] = {{REPLY, text}};
	struct cbshm_call call = {0};

	for (int i = 0; i < 400; i++)
		strcat(text, "\u00e9");
	strcat(text, "\"}}");
	server_begin(script, 1);
	struct cbshm *client = client_at(server.path);

	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL), CBSHM_ERR_BUSY);
	CU_ASSERT_EQUAL(strlen(call.message), 511);
	CU_ASSERT_STRING_EQUAL(call.message + 506, "\u00e9...");
	cbshm_close(client);
	server_end();
}

static void test_nonsense(void)
{
	static const char *const replies[] = {
		"",
		"x",
		"[]",
		"null",
		"{\"error\":7}",
		"{\"parameters\":{\"incident\":7}}",
		"{\"parameters\":{\"incident\":{}}}",
		"{\"parameters\":{\"incident\":{\"id\":7}}}",
		"{\"parameters\":{\"incident\":{\"id\":\"" UUID UUID "\"}}}",
		"{\"error\":\"io.cbshm.Malformed\",\"parameters\":{\"message\":\"m\"}}",
		"{\"error\":\"org.varlink.service.Unheard\",\"parameters\":{}}",
		"{\"error\":\"\"}",
		"{\"parameters\":{\"incident\":null}} x",
	};
	struct step script = {REPLY, NULL};

	for (size_t i = 0; i < sizeof(replies) / sizeof(*replies); i++) {
		struct cbshm_call call = {0};
		int error;

		script.text = replies[i];
		server_begin(&script, 1);
		struct cbshm *client = client_at(server.path);

		/* A report that may have been applied, and an answer that nobody understands. */
		error = cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL);
		CU_ASSERT_TRUE(error == CBSHM_ERR_PROTOCOL || error == CBSHM_ERR_UNKNOWN);
		CU_ASSERT_TRUE(call.message[0] != '\0');
		cbshm_close(client);
		server_end();
	}
}

/* ---- lost connections ------------------------------------------------------------------- */

static void test_report_lost(void)
{
	SERVE({CLOSE, NULL});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {.timeout_ms = 1500};

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
			CBSHM_ERR_UNKNOWN);
	expect_in(call.message, "lost");
	CU_ASSERT_EQUAL(call.timeout_ms, 1500);
	CU_ASSERT_EQUAL(server.received, 1);
	cbshm_close(client);
	server_end();
}

static void test_disable_repeated(void)
{
	SERVE({CLOSE, NULL}, {REPLY, CHANGED});
	struct cbshm *client = client_at(server.path);
	char *first, *second;
	bool changed = false;

	CU_ASSERT_EQUAL(cbshm_disable(client, "b", "r", NULL, 0, 0, NULL, &changed, NULL), 0);
	CU_ASSERT_TRUE(changed);
	CU_ASSERT_EQUAL(server.received, 2);
	first = sent_text(0, "request_id");
	second = sent_text(1, "request_id");
	CU_ASSERT_STRING_EQUAL(first, second);
	CU_ASSERT_TRUE(sent_number(1, "timeout_ms") <= sent_number(0, "timeout_ms"));
	free(first);
	free(second);
	/* Another call is another request. */
	CU_ASSERT_EQUAL(cbshm_disable(client, "b", "r", NULL, 0, 0, NULL, &changed, NULL), 0);
	first = sent_text(1, "request_id");
	second = sent_text(2, "request_id");
	CU_ASSERT_STRING_NOT_EQUAL(first, second);
	free(first);
	free(second);
	cbshm_close(client);
	server_end();
}

static void test_disable_lost_twice(void)
{
	SERVE({CLOSE, NULL});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};

	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL), CBSHM_ERR_UNKNOWN);
	CU_ASSERT_EQUAL(server.received, 2);
	cbshm_close(client);
	server_end();
}

/* "Nothing was applied" in the second answer says nothing about the first attempt. */
static void test_unknown_stays_unknown(void)
{
	SERVE({REPLY, "{\"error\":\"io.cbshm.OutcomeUnknown\",\"parameters\":{\"message\":\"?\"}}"},
	      {REPLY, "{\"error\":\"io.cbshm.DatabaseUnavailable\",\"parameters\":{\"message\":"
		      "\"gone\"}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};

	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL), CBSHM_ERR_UNKNOWN);
	expect_in(call.message, "gone");
	CU_ASSERT_EQUAL(server.received, 2);
	cbshm_close(client);
	server_end();
}

/* The agent is restarted between two calls: nobody notices. */
static void test_closed_while_idle(void)
{
	SERVE({REPLY_AND_CLOSE, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);

	for (int i = 1; i <= 3; i++) {
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
		CU_ASSERT_EQUAL(server.accepted, i);
		while (server.served < i)
			poll(NULL, 0, 1);
	}
	CU_ASSERT_EQUAL(server.received, 3);
	cbshm_close(client);
	server_end();
}

/* What lies in an idle connection is the answer to nothing. */
static void test_stale_answer(void)
{
	SERVE({REPLY_TWICE, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);

	for (int i = 1; i <= 3; i++) {
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
		CU_ASSERT_EQUAL(server.accepted, i);
		while (server.served < i)
			poll(NULL, 0, 1);
	}
	cbshm_close(client);
	server_end();
}

static void test_turned_away(void)
{
	SERVE({GREET_AND_CLOSE,
	       "{\"error\":\"io.cbshm.LimitExceeded\",\"parameters\":{\"message\":\"full\"}}"});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {0};

	for (int i = 0; i < 20; i++) {
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
				CBSHM_ERR_REFUSED);
		CU_ASSERT_STRING_EQUAL(call.message, "full");
	}
	cbshm_close(client);
	server_end();
}

static void test_reads_lost(void)
{
	SERVE({CLOSE, NULL});
	struct cbshm *client = client_at(server.path);
	struct cbshm_state state;

	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", NULL, &state), CBSHM_ERR_AGENT_DOWN);
	cbshm_close(client);
	server_end();
}

static void test_deadlines(void)
{
	SERVE({SILENCE, NULL});
	struct cbshm *client = client_at(server.path);
	struct cbshm_call call = {.timeout_ms = 200};
	struct cbshm_state state;
	int64_t begun = now_ms(), took;

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
			CBSHM_ERR_UNKNOWN);
	took = now_ms() - begun;
	CU_ASSERT_TRUE(took >= 195 && took < 2000);
	CU_ASSERT_TRUE(sent_number(0, "timeout_ms") <= 200);
	CU_ASSERT_EQUAL(cbshm_fetch_state(client, "b", &call, &state), CBSHM_ERR_TIMEOUT);
	begun = now_ms();
	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL), CBSHM_ERR_UNKNOWN);
	CU_ASSERT_TRUE(now_ms() - begun < 2000);
	cbshm_close(client);
	server_end();
}

static void test_no_agent(void)
{
	char path[200];
	struct cbshm_call call = {0};
	struct cbshm *client = client_at(server.path);
	int64_t begun = now_ms();
	int fd;

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
			CBSHM_ERR_AGENT_DOWN);
	expect_in(call.message, server.path);
	expect_in(call.message, "no such file");
	expect_in(call.message, "systemctl status cbagent");
	/* A socket that a dead agent left behind. */
	fd = listen_at(server.path);
	close(fd);
	CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL), CBSHM_ERR_AGENT_DOWN);
	expect_in(call.message, "connection refused");
	CU_ASSERT_TRUE(now_ms() - begun < CBSHM_DEFAULT_TIMEOUT_MS / 2);
	cbshm_close(client);
	unlink(server.path);

	memset(path, 'p', sizeof(path) - 1);
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	struct cbshm_options options = {.size = sizeof(options), .socket = path};
	if (cbshm_open(&options, &client) == 0) {
		CU_ASSERT_EQUAL(cbshm_enable(client, "b", NULL, NULL, &call, NULL),
				CBSHM_ERR_INVALID);
		expect_in(call.message, "socket");
		cbshm_close(client);
	}
}

/* The backlog is full and nobody accepts. */
static void test_backlog(void)
{
	const int listener = listen_at(server.path);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct cbshm_call call = {.timeout_ms = 100};
	int fds[8], count = 0;

	CU_ASSERT_EQUAL(listen(listener, 1), 0);
	memcpy(address.sun_path, server.path, strlen(server.path) + 1);
	for (; count < 8; count++) {
		fds[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (connect(fds[count], (struct sockaddr *)&address, sizeof(address)) < 0) {
			close(fds[count]);
			break;
		}
	}
	struct cbshm *client = client_at(server.path);

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
			CBSHM_ERR_TIMEOUT);
	expect_in(call.message, "nothing was sent");
	cbshm_close(client);
	while (count > 0)
		close(fds[--count]);
	close(listener);
	unlink(server.path);
}

/* ---- trust, processes, threads ---------------------------------------------------------- */

static void test_untrusted(void)
{
	int ready[2];
	struct cbshm_call call = {0};
	char byte;
	pid_t pid;

	if (getuid() != 0) {
		tap_skip("only root can start a server of another user");
		return;
	}
	CU_ASSERT_EQUAL_FATAL(pipe(ready), 0);
	CU_ASSERT_EQUAL_FATAL(chmod(server.directory, 0777), 0);
	pid = child_fork();
	if (pid == 0) {
		if (setuid(65534) != 0 || listen_at(server.path) < 0 || write(ready[1], "", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	CU_ASSERT_EQUAL(read(ready[0], &byte, 1), 1);
	struct cbshm *client = client_at(server.path);

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL),
			CBSHM_ERR_UNTRUSTED);
	expect_in(call.message, "65534");
	expect_in(call.message, "CBSHM_OWNER");
	cbshm_close(client);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	unlink(server.path);
	close(ready[0]);
	close(ready[1]);
}

static void test_fork(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	int status = -1;
	pid_t pid;

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	pid = child_fork();
	if (pid == 0) {
		int error = cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL);

		if (error == 0)
			error = cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL);
		_exit(error == 0 ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_EQUAL(server.accepted, 2);
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	CU_ASSERT_EQUAL(server.accepted, 2);
	CU_ASSERT_EQUAL(server.received, 4);
	cbshm_close(client);
	server_end();
}

static _Atomic int thread_failures;

static void *hammer(void *arg)
{
	for (int i = 0; i < 100; i++) {
		struct cbshm_call call = {0};

		if (cbshm_report_drift(arg, "b", 0.5, 1, "{\"a\":1}", &call, NULL) != 0)
			thread_failures++;
	}
	return NULL;
}

/* Calls that wait for 50 ms, if only since the machine has other things to do, take another connection, up to four. */
static void expect_few_connections(int least)
{
	CU_ASSERT_TRUE(server.accepted >= least && server.accepted <= least + 3);
}

static void test_threads(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	const int files = open_files();
	pthread_t threads[8];

	thread_failures = 0;
	for (int i = 0; i < 8; i++)
		CU_ASSERT_EQUAL_FATAL(pthread_create(&threads[i], NULL, hammer, client), 0);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	CU_ASSERT_EQUAL(thread_failures, 0);
	CU_ASSERT_EQUAL(server.received, 800);
	expect_few_connections(1);
	cbshm_close(client);
	for (int i = 0; i < 500 && open_files() > files; i++)
		poll(NULL, 0, 10); /* until the server has closed its ends */
	CU_ASSERT_TRUE(open_files() <= files);
	server_end();
}

/* ---- one connection, many calls --------------------------------------------------------- */

#define TRIPPED "{\"parameters\":{\"incident\":" INCIDENT "}}"

/*
 * Somebody's deadline passes; the answer that comes after it is not taken for the next one's. False: it did not come to
 * that, since the machine took so long that nothing was sent, or that the next one took another connection.
 */
static bool late_answer(void)
{
	static const struct step script[] = {
		{REPLY, NO_INCIDENT}, {HOLD, TRIPPED}, {REPLY, NO_INCIDENT}};
	struct cbshm_call call = {.timeout_ms = 20};
	char tripped[CBSHM_UUID_SIZE];
	struct cbshm *client;
	int error;

	server_begin(script, 3);
	client = client_at(server.path);
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	error = cbshm_report_drift(client, "b", 0.5, 1, NULL, &call, NULL);
	if (error == CBSHM_ERR_UNKNOWN) {
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, tripped), 0);
		CU_ASSERT_STRING_EQUAL(tripped, "");
	}
	cbshm_close(client);
	server_end();
	return error == CBSHM_ERR_UNKNOWN && server.accepted == 1;
}

static void test_late_answer(void)
{
	bool happened = false;

	for (int i = 0; i < 20 && !happened; i++)
		happened = late_answer();
	CU_ASSERT_TRUE(happened);
}

struct caller {
	struct cbshm *client;
	int timeout_ms, error;
	pthread_t thread;
};

static void *call_once(void *arg)
{
	struct caller *caller = arg;
	struct cbshm_call call = {.timeout_ms = caller->timeout_ms};

	caller->error = cbshm_report_drift(caller->client, "b", 0.5, 1, NULL, &call, NULL);
	return NULL;
}

static void caller_begin(struct caller *caller, struct cbshm *client, int timeout_ms)
{
	caller->client = client;
	caller->timeout_ms = timeout_ms;
	CU_ASSERT_EQUAL_FATAL(pthread_create(&caller->thread, NULL, call_once, caller), 0);
}

/* A call that the agent does not answer, first of all; what comes while it waits takes another connection. */
static void test_stalled(void)
{
	SERVE({SILENCE, NULL}, {REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	struct caller first, second;

	caller_begin(&first, client, 1000);
	while (server.received == 0)
		poll(NULL, 0, 1);
	caller_begin(&second, client, 5000); /* joins the line, and leaves it again */
	pthread_join(second.thread, NULL);
	CU_ASSERT_EQUAL(second.error, 0);
	for (int i = 0; i < 3; i++)
		CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	expect_few_connections(2);
	pthread_join(first.thread, NULL);
	CU_ASSERT_EQUAL(first.error, CBSHM_ERR_UNKNOWN);
	cbshm_close(client);
	server_end();
}

/* An agent that is full: each of many is refused, and none is left in doubt. */
static void test_all_turned_away(void)
{
	SERVE({GREET_AND_CLOSE,
	       "{\"error\":\"io.cbshm.LimitExceeded\",\"parameters\":{\"message\":\"full\"}}"});
	struct cbshm *client = client_at(server.path);
	struct caller callers[8];

	for (int i = 0; i < 8; i++)
		caller_begin(&callers[i], client, 5000);
	for (int i = 0; i < 8; i++) {
		pthread_join(callers[i].thread, NULL);
		CU_ASSERT_EQUAL(callers[i].error, CBSHM_ERR_REFUSED);
	}
	cbshm_close(client);
	server_end();
}

/* What comes after a refusal is not sent into a connection that the agent may be closing. */
static void test_refused_in_front(void)
{
	SERVE({REPLY,
	       "{\"error\":\"io.cbshm.LimitExceeded\",\"parameters\":{\"message\":\"full\"}}"},
	      {REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	struct caller callers[8];
	int refused_ones = 0;

	for (int i = 0; i < 8; i++)
		caller_begin(&callers[i], client, 5000);
	for (int i = 0; i < 8; i++) {
		pthread_join(callers[i].thread, NULL);
		CU_ASSERT_TRUE(callers[i].error == 0 || callers[i].error == CBSHM_ERR_REFUSED);
		refused_ones += callers[i].error != 0;
	}
	CU_ASSERT_EQUAL(refused_ones, 1);
	expect_few_connections(2);
	cbshm_close(client);
	server_end();
}

/* The agent goes away under many: each is told that it cannot be known, and the next call finds the next agent. */
static void test_all_lost(void)
{
	SERVE({REPLY, NO_INCIDENT}, {SILENCE, NULL}, {SILENCE, NULL}, {SILENCE, NULL},
	      {CLOSE, NULL}, {REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	struct caller callers[4];

	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	for (int i = 0; i < 4; i++)
		caller_begin(&callers[i], client, 5000);
	for (int i = 0; i < 4; i++) {
		pthread_join(callers[i].thread, NULL);
		CU_ASSERT_EQUAL(callers[i].error, CBSHM_ERR_UNKNOWN);
	}
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	CU_ASSERT_EQUAL(server.received, 6);
	expect_few_connections(2);
	cbshm_close(client);
	server_end();
}

/* Descriptors that an application closes or overwrites without knowing whose they are. */
static void test_overwritten(void)
{
	SERVE({REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	struct pollfd poll_fd = {.events = POLLIN};
	int ends[2], fd;

	CU_ASSERT_EQUAL_FATAL(pipe(ends), 0);
	poll_fd.fd = ends[0];
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	fd = server_peer();
	CU_ASSERT_TRUE_FATAL(fd >= 0);
	CU_ASSERT_EQUAL(dup2(ends[1], fd), fd);
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	CU_ASSERT_EQUAL(server.accepted, 2);
	close(server_peer());
	CU_ASSERT_EQUAL(cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL), 0);
	CU_ASSERT_EQUAL(server.accepted, 3);
	CU_ASSERT_EQUAL(dup2(ends[1], server_peer()) >= 0, true);
	cbshm_close(client);
	/* Nothing was written into it, and it is still open. */
	CU_ASSERT_EQUAL(poll(&poll_fd, 1, 0), 0);
	CU_ASSERT_EQUAL(write(fd, "x", 1), 1);
	CU_ASSERT_EQUAL(poll(&poll_fd, 1, 0), 1);
	close(fd);
	close(ends[0]);
	close(ends[1]);
	server_end();
}

/* A fork() while another thread waits for an answer, and has the lead. */
static void test_fork_in_the_middle(void)
{
	SERVE({SILENCE, NULL}, {REPLY, NO_INCIDENT});
	struct cbshm *client = client_at(server.path);
	struct caller caller;
	int status = -1;
	pid_t pid;

	caller_begin(&caller, client, 300);
	while (server.received == 0)
		poll(NULL, 0, 1);
	pid = child_fork();
	if (pid == 0) {
		int error = cbshm_report_drift(client, "b", 0.5, 1, NULL, NULL, NULL);

		if (error == 0)
			error = cbshm_disable(client, "b", "r", NULL, 0, 1, NULL, NULL, NULL);
		cbshm_close(client);
		_exit(error == CBSHM_ERR_PROTOCOL ? 0 : 1); /* no "changed" in the answer */
	}
	waitpid(pid, &status, 0);
	CU_ASSERT_EQUAL(status, 0);
	CU_ASSERT_EQUAL(server.accepted, 2);
	pthread_join(caller.thread, NULL);
	CU_ASSERT_EQUAL(caller.error, CBSHM_ERR_UNKNOWN);
	cbshm_close(client);
	server_end();
}

static void test_words(void)
{
	CU_ASSERT_STRING_EQUAL(cbshm_version(), PACKAGE_VERSION);
	for (int error = 0; error >= CBSHM_ERR_BEHIND; error--) {
		CU_ASSERT_TRUE(strlen(cbshm_strerror(error)) > 0);
		CU_ASSERT_STRING_NOT_EQUAL(cbshm_strerror(error), "unknown error");
	}
	CU_ASSERT_STRING_EQUAL(cbshm_strerror(CBSHM_ERR_BEHIND - 1), "unknown error");
	CU_ASSERT_STRING_EQUAL(cbshm_strerror(INT_MAX), "unknown error");
}

static const CU_TestInfo tests[] = {
	{"reports carry what was given", test_report},
	{"a locale with a comma changes nothing", test_locale},
	{"disable, enable and reset", test_decisions},
	{"policies", test_policy},
	{"incidents", test_incidents},
	{"the state as the database has it", test_state},
	{"the fleet", test_fleet},
	{"any other method", test_call_json},
	{"a reason that does not fit", test_long_reason},
	{"bad arguments are refused by name, and nothing is sent", test_invalid},
	{"the agent's errors keep their meaning and their message", test_errors},
	{"what the agent has not taken up", test_not_taken_up},
	{"a long message is cut between characters", test_long_message},
	{"answers that make no sense", test_nonsense},
	{"a report whose answer is lost is not repeated: unknown", test_report_lost},
	{"a disable whose answer is lost is repeated with its id", test_disable_repeated},
	{"a disable that is lost twice is unknown", test_disable_lost_twice},
	{"unknown stays unknown", test_unknown_stays_unknown},
	{"a connection closed while idle", test_closed_while_idle},
	{"an answer that nobody asked for", test_stale_answer},
	{"turned away at the door: the reason is read", test_turned_away},
	{"a read whose answer is lost", test_reads_lost},
	{"deadlines", test_deadlines},
	{"no agent: said at once, with what to do", test_no_agent},
	{"an agent that does not accept", test_backlog},
	{"a server of another user is not believed", test_untrusted},
	{"a child has a connection of its own", test_fork},
	{"threads share one connection", test_threads},
	{"a late answer is not the next one's", test_late_answer},
	{"a call that is not answered does not hold up the others", test_stalled},
	{"all turned away at the door, none in doubt", test_all_turned_away},
	{"calls behind one that is refused", test_refused_in_front},
	{"a connection lost under many", test_all_lost},
	{"descriptors that the application overwrites or closes", test_overwritten},
	{"a fork while another thread waits", test_fork_in_the_middle},
	{"errors in words", test_words},
	CU_TEST_INFO_NULL,
};

int main(void)
{
	return server_run_tests("client", tests);
}
