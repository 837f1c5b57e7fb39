/*
 * test_config.c - the configuration file: what it takes, and what it says of everything else
 *
 * SPDX-License-Identifier: ISC
 */
#include <config.h>

#include <CUnit/Basic.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/config.h"
#include "agent/target.h"
#include "agent/text.h"
#include "tests/support/tap.h"

static char message[4096];

/* The configuration that a text makes; NULL and `message`, if it is wrong. */
static struct config *parse(const char *text)
{
	struct config *config = NULL;
	FILE *file = fmemopen((void *)(uintptr_t)text, strlen(text), "r");

	CU_ASSERT_PTR_NOT_NULL_FATAL(file);
	*message = '\0';
	if (config_parse(file, "F", &config, message, sizeof(message)) != 0)
		config = NULL;
	fclose(file);
	return config;
}

/* Is it refused, with a message that begins and goes on like this? */
static void refused(const char *text, const char *where, const char *what)
{
	struct config *config = parse(text);

	CU_ASSERT_PTR_NULL(config);
	CU_ASSERT_EQUAL(strncmp(message, where, strlen(where)), 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(message, what));
	if (strncmp(message, where, strlen(where)) != 0 || strstr(message, what) == NULL)
		fprintf(stderr, "# '%s' gave '%s', not '%s ... %s'\n", text, message, where, what);
	config_free(config);
}

static void test_defaults(void)
{
	struct config *config = parse("# nothing\n");
	char host[256];

	CU_ASSERT_PTR_NOT_NULL_FATAL(config);
	gethostname(host, sizeof(host));
	CU_ASSERT_STRING_EQUAL(config->conninfo, "");
	CU_ASSERT_STRING_EQUAL(config->segment_name, "/cbshm");
	CU_ASSERT_EQUAL(config->segment_capacity, 65536);
	CU_ASSERT_EQUAL(config->segment_mode, 0640);
	CU_ASSERT_EQUAL(config->segment_group, CONFIG_NO_GROUP);
	CU_ASSERT_STRING_EQUAL(config->socket_path, "/run/cbshm/io.cbshm");
	CU_ASSERT_EQUAL(config->socket_mode, 0660);
	CU_ASSERT_EQUAL(config->socket_group, CONFIG_NO_GROUP);
	CU_ASSERT_EQUAL(config->admin_group, CONFIG_NO_GROUP);
	CU_ASSERT_STRING_EQUAL(config->alertmanager_url, "");
	CU_ASSERT_PTR_NULL(config->bearer_token_file);
	CU_ASSERT_PTR_NULL(config->basic_auth_file);
	CU_ASSERT_PTR_NULL(config->ca_file);
	CU_ASSERT_PTR_NULL(config->runbook_url);
	CU_ASSERT_EQUAL(config->resend_interval, 60);
	CU_ASSERT_STRING_EQUAL(config->metrics_listen, "");
	CU_ASSERT_EQUAL(config->metrics_breakers, 10000);
	CU_ASSERT_STRING_EQUAL(config->instance, host);
	CU_ASSERT_STRING_EQUAL(config->host, host);
	CU_ASSERT_EQUAL(config->log_level, LOG_LEVEL_INFO);
	config_free(config);
}

static void test_every_key(void)
{
	struct config *config =
		parse("[postgres]\nconninfo = host=/tmp ; why\n dbname=x\n"
		      "[segment]\nname=/s\ncapacity=1048576\nmode=0600\ngroup=0\n"
		      "[socket]\npath=/tmp/s\nmode=666\ngroup=root\nadmin_group=1\n"
		      "[alertmanager]\nurl=http://a:9093,https://b/am\n http://[::1]\n"
		      "bearer_token_file=/t\nca_file=/c\nresend_interval=7\n"
		      "runbook_url=https://r/x\n"
		      "[metrics]\nlisten=[::1]:9847\nbreakers=0\n"
		      "[agent]\ninstance=a-1\nlog_level=debug\n");

	CU_ASSERT_PTR_NOT_NULL_FATAL(config);
	CU_ASSERT_STRING_EQUAL(config->conninfo, "host=/tmp dbname=x");
	CU_ASSERT_STRING_EQUAL(config->segment_name, "/s");
	CU_ASSERT_EQUAL(config->segment_capacity, 1u << 20);
	CU_ASSERT_EQUAL(config->segment_mode, 0600);
	CU_ASSERT_EQUAL(config->segment_group, 0);
	CU_ASSERT_STRING_EQUAL(config->socket_path, "/tmp/s");
	CU_ASSERT_EQUAL(config->socket_mode, 0666);
	CU_ASSERT_EQUAL(config->socket_group, 0);
	CU_ASSERT_EQUAL(config->admin_group, 1);
	CU_ASSERT_STRING_EQUAL(config->alertmanager_url, "http://a:9093,https://b/am http://[::1]");
	CU_ASSERT_STRING_EQUAL(config->bearer_token_file, "/t");
	CU_ASSERT_STRING_EQUAL(config->ca_file, "/c");
	CU_ASSERT_EQUAL(config->resend_interval, 7);
	CU_ASSERT_STRING_EQUAL(config->runbook_url, "https://r/x");
	CU_ASSERT_STRING_EQUAL(config->metrics_listen, "[::1]:9847");
	CU_ASSERT_EQUAL(config->metrics_breakers, 0);
	CU_ASSERT_STRING_EQUAL(config->instance, "a-1");
	CU_ASSERT_EQUAL(config->log_level, LOG_LEVEL_DEBUG);
	config_free(config);
}

static void test_unknown(void)
{
	refused("[segment]\nnmae=/x\n", "F:2: unknown key 'nmae' in [segment]", "name");
	refused("\n[segmnt]\n", "F:2: unknown section [segmnt]", "[segment]");
	refused("name=/x\n", "F:1: 'name' stands before any section", "");
	refused("[segment]\nnonsense\n", "F:2: ", "key = value");
	refused("[segment]\nname=/a\nname=/b\n", "F:3: ", "line 2");
	refused("[segment]\nname=\n", "F:2: ", "no value");
}

static void test_wrong_values(void)
{
	refused("[postgres]\nconninfo = hots=/tmp\n", "F:2: conninfo: ", "hots");
	refused("[segment]\nname=cbshm\n", "F:2: name = cbshm: ", "slash");
	refused("[segment]\nname=/a/b\n", "F:2: ", "slash");
	refused("[segment]\nname=/..\n", "F:2: ", "slash");
	refused("[segment]\ncapacity=15\n", "F:2: capacity = 15: ", "16 to 1048576");
	refused("[segment]\ncapacity=1048577\n", "F:2: ", "16 to 1048576");
	refused("[segment]\ncapacity=-1\n", "F:2: ", "16 to 1048576");
	refused("[segment]\ncapacity=64k\n", "F:2: ", "16 to 1048576");
	refused("[segment]\ncapacity=99999999999999999999\n", "F:2: ", "16 to 1048576");
	refused("[segment]\nmode=0660\n", "F:2: mode = 0660: ", "0644");
	refused("[segment]\nmode=0440\n", "F:2: ", "owner");
	refused("[segment]\nmode=rw\n", "F:2: ", "octal");
	refused("[segment]\ngroup=no-such-group-here\n", "F:2: group = ", "no such group");
	refused("[socket]\npath=io.cbshm\n", "F:2: path = io.cbshm: ", "absolute");
	refused("[socket]\npath=/run/\n", "F:2: ", "absolute");
	refused("[socket]\nmode=0777\n", "F:2: ", "0666");
	refused("[alertmanager]\nurl=alertmanager:9093\n", "F:2: url: alertmanager:9093 ",
		"http://");
	refused("[alertmanager]\nurl=http://a\n ftp://b\n", "F:2: url: ftp://b ", "http://");
	refused("[alertmanager]\nurl=http://\n", "F:2: url: http:// ", "host");
	refused("[alertmanager]\nurl=https://u:p@a\n", "F:2: url: ", "basic_auth_file");
	refused("[alertmanager]\nurl=http://a/?x\n", "F:2: url: ", "path");
	refused("[alertmanager]\nurl=http://a:0\n", "F:2: url: ", "port");
	refused("[alertmanager]\nurl=http://a:65536\n", "F:2: url: ", "must be");
	refused("[alertmanager]\nca_file=ca.pem\n", "F:2: ca_file = ca.pem: ", "absolute");
	refused("[alertmanager]\nbearer_token_file=/a\nbasic_auth_file=/b\n", "F:3: ", "both");
	refused("[alertmanager]\nresend_interval=0\n", "F:2: ", "from 1 to 3600");
	refused("[alertmanager]\nresend_interval=1m\n", "F:2: ", "seconds");
	refused("[metrics]\nlisten=localhost:9847\n", "F:2: ", "names are not looked up");
	refused("[metrics]\nlisten=127.0.0.1\n", "F:2: ", "and a port");
	refused("[metrics]\nlisten=127.0.0.1:0\n", "F:2: ", "and a port");
	refused("[metrics]\nlisten=::1:9847x\n", "F:2: ", "[::1]:9847");
	refused("[metrics]\nbreakers=-1\n", "F:2: ", "from 0 to 1048576");
	refused("[metrics]\nbreakers=1048577\n", "F:2: ", "from 0 to 1048576");
	refused("[alertmanager]\nrunbook_url=wiki\n", "F:2: ", "http://");
	refused("[socket]\nadmin_group=-1\n", "F:2: admin_group = -1: ", "no such group");
	refused("[agent]\ninstance=a b\n", "F:2: instance = a b: ", "printable");
	refused("[agent]\nlog_level=loud\n", "F:2: log_level = loud: ", "debug");
}

static void test_socket_path_fits(void)
{
	char text[256] = "[socket]\npath=/";
	struct config *config;
	size_t length = strlen(text);

	/* sun_path has 108 bytes, one of them for the NUL. */
	memset(text + length, 'x', 106);
	config = parse(text);
	CU_ASSERT_PTR_NOT_NULL(config);
	config_free(config);
	text[length + 106] = 'x';
	refused(text, "F:2: ", "107 bytes");
}

static void test_every_mistake_is_told(void)
{
	refused("[segment]\nmode=1\n[socket]\nmode=1\n", "F:2: mode", "\nF:4: mode");
}

static void test_long_line(void)
{
	char text[600] = "[postgres]\nconninfo = host=/";

	memset(text + strlen(text), 'x', 400);
	strcat(text, "\n[agent]\nlog_level = loud\n");
	refused(text, "F:2: longer than", "\nF:4: log_level");
}

static void test_missing_file(void)
{
	struct config *config = NULL;

	CU_ASSERT_EQUAL(config_load("/nonexistent/cbagent.conf", &config, message, sizeof(message)),
			-ENOENT);
	CU_ASSERT_STRING_EQUAL(message, "/nonexistent/cbagent.conf: No such file or directory");
}

/* ---- where a conninfo leads ---- */

static const char *setting(struct target *target, unsigned first, const char *keyword)
{
	const char *const *keywords, *const *values;

	target_settings(target, first, &keywords, &values);
	for (unsigned i = 0; keywords[i] != NULL; i++) {
		if (strcmp(keywords[i], keyword) == 0)
			return values[i];
	}
	return NULL;
}

static void test_target_defaults(void)
{
	struct target *target = target_new("host=/tmp application_name=mine");
	const char *names[TARGET_SERVERS_MAX];

	CU_ASSERT_PTR_NOT_NULL_FATAL(target);
	CU_ASSERT_EQUAL(target_names(target, names), 0);
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "host"), "/tmp");
	CU_ASSERT_PTR_NULL(setting(target, 0, "hostaddr"));
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "application_name"), "mine");
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "target_session_attrs"), "read-write");
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "client_encoding"), "UTF8");
	target_free(target);
}

static void test_target_names(void)
{
	struct target *target = target_new("host=a,/tmp,10.0.0.1,b port=1,2,3,4 connect_timeout=7");
	const char *names[TARGET_SERVERS_MAX];
	const struct resolution resolutions[2] = {
		{.host = NULL, .addresses = {"192.0.2.1", "2001:db8::1"}, .count = 2},
		{.host = NULL, .count = 0},
	};

	CU_ASSERT_PTR_NOT_NULL_FATAL(target);
	CU_ASSERT_EQUAL(target_timeout(target, 0), 7000000);
	CU_ASSERT_EQUAL_FATAL(target_names(target, names), 2);
	CU_ASSERT_STRING_EQUAL(names[0], "a");
	CU_ASSERT_STRING_EQUAL(names[1], "b");
	CU_ASSERT_EQUAL(target_resolve(target, resolutions, 2), 4);
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "host"), "a,a,/tmp,10.0.0.1");
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "hostaddr"), "192.0.2.1,2001:db8::1,,");
	CU_ASSERT_STRING_EQUAL(setting(target, 0, "port"), "1,1,2,3");
	/* A server that hangs is tried last the next time. */
	CU_ASSERT_STRING_EQUAL(setting(target, 2, "host"), "/tmp,10.0.0.1,a,a");
	CU_ASSERT_STRING_EQUAL(setting(target, 5, "port"), "1,2,3,1");
	target_free(target);
}

static void test_target_timeouts(void)
{
	struct target *one = target_new("host=/tmp"), *two = target_new("host=/a,/b");

	CU_ASSERT_EQUAL(target_timeout(one, 0), 5000000);
	CU_ASSERT_EQUAL(target_timeout(two, 0), 500000);
	CU_ASSERT_EQUAL(target_timeout(two, 1), 1000000);
	CU_ASSERT_EQUAL(target_timeout(two, 4000000000), 2000000);
	target_free(one);
	target_free(two);
}

static void test_target_choice(void)
{
	struct target *target = target_new("host=/a,/b,/b port=1,2,3");
	struct target *any = target_new("host=/a,/b target_session_attrs=any");
	const char *const *keywords, *const *values;

	CU_ASSERT_EQUAL(target_find(target, "/b", "", "2"), 1);
	CU_ASSERT_EQUAL(target_find(target, "/b", "", "3"), 2);
	CU_ASSERT_EQUAL(target_find(target, "/b", "", "4"), TARGET_NONE);
	CU_ASSERT_EQUAL(target_choice(target), 3);
	target_one(target, 2, &keywords, &values);
	for (; *keywords != NULL; keywords++, values++) {
		if (strcmp(*keywords, "host") == 0)
			CU_ASSERT_STRING_EQUAL(*values, "/b");
		if (strcmp(*keywords, "port") == 0)
			CU_ASSERT_STRING_EQUAL(*values, "3");
	}
	CU_ASSERT_EQUAL(target_choice(any), 0);
	target_free(target);
	target_free(any);
}

static void test_target_nothing_resolves(void)
{
	struct target *target = target_new("host=a");
	const struct resolution resolution = {.host = NULL, .count = 0};

	CU_ASSERT_PTR_NOT_NULL_FATAL(target);
	CU_ASSERT_EQUAL(target_resolve(target, &resolution, 1), 0);
	target_free(target);
}

/* ---- the notations ---- */

static void test_array(void)
{
	struct text text = {0};
	char *array;

	text_array_add(&text, "a");
	text_array_add(&text, NULL);
	text_array_add(&text, "\"\\{},NULL");
	text_array_add(&text, "");
	array = text_array_end(&text);
	CU_ASSERT_STRING_EQUAL(array, "{\"a\",NULL,\"\\\"\\\\{},NULL\",\"\"}");
	free(array);
	array = text_array_end(&text);
	CU_ASSERT_STRING_EQUAL(array, "{}");
	free(array);
}

static void test_json(void)
{
	struct text text = {0};
	char *json;

	text_json(&text, "a\"b\\c\n\x7f\xc3\xa9\xff\xc3");
	json = text_take(&text);
	CU_ASSERT_STRING_EQUAL(json, "\"a\\\"b\\\\c\\u000a\\u007f\xc3\xa9??\"");
	free(json);
}

int main(void)
{
	CU_TestInfo config[] = {
		{"defaults", test_defaults},
		{"every key", test_every_key},
		{"unknown keys and sections", test_unknown},
		{"wrong values", test_wrong_values},
		{"the socket's path fits", test_socket_path_fits},
		{"every mistake is told", test_every_mistake_is_told},
		{"a line that is too long", test_long_line},
		{"a file that is missing", test_missing_file},
		CU_TEST_INFO_NULL,
	};
	CU_TestInfo target[] = {
		{"defaults", test_target_defaults},
		{"names, addresses and ports", test_target_names},
		{"how long each attempt lasts", test_target_timeouts},
		{"one server of several", test_target_choice},
		{"nothing resolves", test_target_nothing_resolves},
		CU_TEST_INFO_NULL,
	};
	CU_TestInfo text[] = {
		{"array of Postgres", test_array},
		{"string of JSON", test_json},
		CU_TEST_INFO_NULL,
	};
	CU_SuiteInfo suites[] = {
		{.pName = "config", .pTests = config},
		{.pName = "target", .pTests = target},
		{.pName = "text", .pTests = text},
		CU_SUITE_INFO_NULL,
	};

	if (CU_initialize_registry() != CUE_SUCCESS || CU_register_suites(suites) != CUE_SUCCESS)
		return EXIT_FAILURE;
	return tap_run_cunit();
}
