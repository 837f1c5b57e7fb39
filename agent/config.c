/*
 * config.c - reads cbagent.conf
 *
 * SPDX-License-Identifier: ISC
 *
 * The INI notation is libinih's business, the table of keys below is ours. libinih does not tell line
 * numbers, so the lines are counted on their way in.
 */
#include <config.h>

#include <assert.h>
#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <libpq-fe.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent/alertmanager.h"
#include "agent/config.h"
#include "agent/http.h"
#include "agent/metrics.h"
#include "agent/text.h"
#include "cbshm/segment.h"
#include "libcbshm/validate.h"

#define NAME_BYTES_MAX 128
#define RESEND_MAX     3600
#define KEYS_MAX       24

struct parser {
	FILE *file;
	const char *path;
	struct config *config;
	int line;
	struct text messages; /* one on a line */
	struct text conninfo;
	int conninfo_line;
	struct text alertmanager_url;
	int alertmanager_url_line;
	int basic_auth_line;
	unsigned long seen; /* bit i: the key keys[i] was there */
	unsigned long seen_line[KEYS_MAX];
};

static void complain(struct parser *parser, int line, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void complain(struct parser *parser, int line, const char *format, ...)
{
	char message[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	text_format(&parser->messages, "%s%s:%d: %s", parser->messages.length > 0 ? "\n" : "",
		    parser->path, line, message);
}

/* ---- the kinds of values: true, or false after complaining ---- */

static bool set_string(char **field, const char *value)
{
	free(*field);
	*field = memory_copy(value);
	return true;
}

static bool parse_mode(struct parser *parser, const char *key, const char *value, mode_t allowed,
		       mode_t *mode)
{
	char *end;
	unsigned long number;

	errno = 0;
	number = strtoul(value, &end, 8);
	if (strspn(value, "01234567") != strlen(value) || *value == '\0' || *end != '\0' ||
	    errno != 0 || (number & ~(unsigned long)allowed) != 0 || (number & 0600) != 0600) {
		complain(parser, parser->line,
			 "%s = %s: must be an octal mode that lets the owner read and write and "
			 "has no "
			 "bits but those of 0%o",
			 key, value, (unsigned)allowed);
		return false;
	}
	*mode = (mode_t)number;
	return true;
}

static bool parse_group(struct parser *parser, const char *key, const char *value, gid_t *gid)
{
	struct group *group;
	unsigned long number;
	char *end;

	errno = 0;
	group = getgrnam(value);
	if (group != NULL) {
		*gid = group->gr_gid;
		return true;
	}
	number = strtoul(value, &end, 10);
	if (strspn(value, "0123456789") == strlen(value) && *value != '\0' && *end == '\0' &&
	    number < CONFIG_NO_GROUP) {
		*gid = (gid_t)number;
		return true;
	}
	complain(parser, parser->line, "%s = %s: there is no such group; give its name or number",
		 key, value);
	return false;
}

static bool parse_file(struct parser *parser, const char *key, const char *value, char **path)
{
	if (value[0] != '/' || value[strlen(value) - 1] == '/') {
		complain(parser, parser->line, "%s = %s: must be the absolute path of a file", key,
			 value);
		return false;
	}
	return set_string(path, value);
}

/* ---- the keys ---- */

static bool key_conninfo(struct parser *parser, const char *value)
{
	/* A long value comes in parts, one a line; it is judged when it is complete. */
	if (parser->conninfo.length > 0)
		text_add(&parser->conninfo, " ");
	else
		parser->conninfo_line = parser->line;
	text_add(&parser->conninfo, value);
	return true;
}

static bool key_segment_name(struct parser *parser, const char *value)
{
	if (!segment_name_valid(value)) {
		complain(parser, parser->line,
			 "name = %s: must be a slash and 1 to 200 bytes without slashes, like "
			 "/cbshm",
			 value);
		return false;
	}
	return set_string(&parser->config->segment_name, value);
}

static bool key_capacity(struct parser *parser, const char *value)
{
	unsigned long number;
	char *end;

	errno = 0;
	number = strtoul(value, &end, 10);
	if (strspn(value, "0123456789") != strlen(value) || *value == '\0' || *end != '\0' ||
	    errno != 0 || number < CBSHM_CAPACITY_MIN || number > CBSHM_CAPACITY_MAX) {
		complain(parser, parser->line,
			 "capacity = %s: must be a number of breakers from %u to %u", value,
			 CBSHM_CAPACITY_MIN, CBSHM_CAPACITY_MAX);
		return false;
	}
	parser->config->segment_capacity = (uint32_t)number;
	return true;
}

static bool key_segment_mode(struct parser *parser, const char *value)
{
	return parse_mode(parser, "mode", value, 0644, &parser->config->segment_mode);
}

static bool key_segment_group(struct parser *parser, const char *value)
{
	return parse_group(parser, "group", value, &parser->config->segment_group);
}

static bool key_snapshot(struct parser *parser, const char *value)
{
	if (strcmp(value, "none") == 0)
		return set_string(&parser->config->snapshot, "");
	return parse_file(parser, "snapshot", value, &parser->config->snapshot);
}

static bool key_socket_path(struct parser *parser, const char *value)
{
	const size_t longest = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;

	if (value[0] != '/' || value[strlen(value) - 1] == '/' || strlen(value) > longest) {
		complain(parser, parser->line,
			 "path = %s: must be the absolute path of a file, at most %zu bytes", value,
			 longest);
		return false;
	}
	return set_string(&parser->config->socket_path, value);
}

static bool key_socket_mode(struct parser *parser, const char *value)
{
	return parse_mode(parser, "mode", value, 0666, &parser->config->socket_mode);
}

static bool key_socket_group(struct parser *parser, const char *value)
{
	return parse_group(parser, "group", value, &parser->config->socket_group);
}

static bool key_admin_group(struct parser *parser, const char *value)
{
	return parse_group(parser, "admin_group", value, &parser->config->admin_group);
}

static bool key_alertmanager_url(struct parser *parser, const char *value)
{
	if (parser->alertmanager_url.length > 0)
		text_add(&parser->alertmanager_url, " ");
	else
		parser->alertmanager_url_line = parser->line;
	text_add(&parser->alertmanager_url, value);
	return true;
}

static bool key_bearer_token_file(struct parser *parser, const char *value)
{
	return parse_file(parser, "bearer_token_file", value, &parser->config->bearer_token_file);
}

static bool key_basic_auth_file(struct parser *parser, const char *value)
{
	parser->basic_auth_line = parser->line;
	return parse_file(parser, "basic_auth_file", value, &parser->config->basic_auth_file);
}

static bool key_ca_file(struct parser *parser, const char *value)
{
	return parse_file(parser, "ca_file", value, &parser->config->ca_file);
}

static bool key_resend_interval(struct parser *parser, const char *value)
{
	unsigned long number;

	errno = 0;
	number = strtoul(value, NULL, 10);
	if (strspn(value, "0123456789") != strlen(value) || errno != 0 || number < 1 ||
	    number > RESEND_MAX) {
		complain(parser, parser->line,
			 "resend_interval = %s: must be a number of seconds from 1 to %d", value,
			 RESEND_MAX);
		return false;
	}
	parser->config->resend_interval = (unsigned)number;
	return true;
}

static bool key_runbook_url(struct parser *parser, const char *value)
{
	if (strncmp(value, "http://", 7) != 0 && strncmp(value, "https://", 8) != 0) {
		complain(parser, parser->line,
			 "runbook_url = %s: must begin with http:// or https://", value);
		return false;
	}
	return set_string(&parser->config->runbook_url, value);
}

static bool key_metrics_listen(struct parser *parser, const char *value)
{
	if (!http_address_valid(value)) {
		complain(parser, parser->line,
			 "listen = %s: must be an address and a port, like 127.0.0.1:9847 or "
			 "[::1]:9847; names are not looked up",
			 value);
		return false;
	}
	return set_string(&parser->config->metrics_listen, value);
}

static bool key_metrics_breakers(struct parser *parser, const char *value)
{
	unsigned long number;

	errno = 0;
	number = strtoul(value, NULL, 10);
	if (strspn(value, "0123456789") != strlen(value) || errno != 0 ||
	    number > CBSHM_CAPACITY_MAX) {
		complain(parser, parser->line,
			 "breakers = %s: must be a number of breakers from 0 to %u", value,
			 CBSHM_CAPACITY_MAX);
		return false;
	}
	parser->config->metrics_breakers = (unsigned)number;
	return true;
}

static bool key_instance(struct parser *parser, const char *value)
{
	bool printable = *value != '\0' && strlen(value) <= NAME_BYTES_MAX;

	for (const char *p = value; *p != '\0'; p++)
		printable = printable && *p > ' ' && *p <= '~';
	if (!printable) {
		complain(parser, parser->line,
			 "instance = %s: must be 1 to %d printable ASCII characters without blanks",
			 value, NAME_BYTES_MAX);
		return false;
	}
	return set_string(&parser->config->instance, value);
}

static bool key_log_level(struct parser *parser, const char *value)
{
	if (!log_level_parse(value, &parser->config->log_level)) {
		complain(parser, parser->line,
			 "log_level = %s: must be error, warning, info or debug", value);
		return false;
	}
	return true;
}

static const struct {
	const char *section;
	const char *name;
	bool (*set)(struct parser *parser, const char *value);
	bool continues; /* over several lines */
} keys[] = {
	{"postgres", "conninfo", key_conninfo, true},
	{"segment", "name", key_segment_name, false},
	{"segment", "capacity", key_capacity, false},
	{"segment", "mode", key_segment_mode, false},
	{"segment", "group", key_segment_group, false},
	{"segment", "snapshot", key_snapshot, false},
	{"socket", "path", key_socket_path, false},
	{"socket", "mode", key_socket_mode, false},
	{"socket", "group", key_socket_group, false},
	{"socket", "admin_group", key_admin_group, false},
	{"alertmanager", "url", key_alertmanager_url, true},
	{"alertmanager", "bearer_token_file", key_bearer_token_file, false},
	{"alertmanager", "basic_auth_file", key_basic_auth_file, false},
	{"alertmanager", "ca_file", key_ca_file, false},
	{"alertmanager", "resend_interval", key_resend_interval, false},
	{"alertmanager", "runbook_url", key_runbook_url, false},
	{"metrics", "listen", key_metrics_listen, false},
	{"metrics", "breakers", key_metrics_breakers, false},
	{"agent", "instance", key_instance, false},
	{"agent", "log_level", key_log_level, false},
};

#define KEYS (sizeof(keys) / sizeof(*keys))

static_assert(KEYS <= KEYS_MAX, "a line for each key");

static bool section_known(const char *section)
{
	for (size_t i = 0; i < KEYS; i++) {
		if (strcmp(keys[i].section, section) == 0)
			return true;
	}
	return false;
}

static void complain_section(struct parser *parser, const char *section)
{
	struct text known = {0};
	const char *last = "";

	for (size_t i = 0; i < KEYS; i++) {
		if (strcmp(keys[i].section, last) != 0)
			text_format(&known, " [%s]", last = keys[i].section);
	}
	complain(parser, parser->line, "unknown section [%s]; there is:%s", section, known.data);
	free(known.data);
}

static void complain_key(struct parser *parser, const char *section, const char *name)
{
	struct text known = {0};

	if (*section == '\0') {
		complain(parser, parser->line, "'%s' stands before any section", name);
		return;
	}
	for (size_t i = 0; i < KEYS; i++) {
		if (strcmp(keys[i].section, section) == 0)
			text_format(&known, " %s", keys[i].name);
	}
	complain(parser, parser->line, "unknown key '%s' in [%s]; there is:%s", name, section,
		 known.data);
	free(known.data);
}

static int handle(void *user, const char *section, const char *name, const char *value)
{
	struct parser *parser = user;

	for (size_t i = 0; i < KEYS; i++) {
		if (strcmp(keys[i].section, section) != 0 || strcmp(keys[i].name, name) != 0)
			continue;
		if ((parser->seen & 1ul << i) != 0 && !keys[i].continues) {
			complain(parser, parser->line, "%s in [%s] was already given in line %lu",
				 name, section, parser->seen_line[i]);
			return 1;
		}
		parser->seen |= 1ul << i;
		parser->seen_line[i] = (unsigned long)parser->line;
		if (*value == '\0' && !keys[i].continues)
			complain(parser, parser->line,
				 "%s has no value; leave the line out for the default", name);
		else
			keys[i].set(parser, value);
		return 1;
	}
	/* An unknown section was complained of when its heading was read. */
	if (*section == '\0' || section_known(section))
		complain_key(parser, section, name);
	return 1;
}

/* libinih tells of sections only with their first key: a wrong one must not pass because it is empty. */
static void check_heading(struct parser *parser, const char *line)
{
	char section[64];
	size_t length;

	line += strspn(line, " \t");
	length = strcspn(line, "]\n");
	if (*line != '[' || line[length] != ']' || length > sizeof(section))
		return;
	memcpy(section, line + 1, length - 1);
	section[length - 1] = '\0';
	if (!section_known(section))
		complain_section(parser, section);
}

static char *skip_line(struct parser *parser, char *line, int c)
{
	while (c != EOF && c != '\n')
		c = getc(parser->file);
	return strcpy(line, "\n");
}

/*
 * fgets(3) that counts lines, sees NULs (a crash leaves files full of them), and does not let libinih take the rest of
 * a long line for another one.
 */
static char *read_line(char *line, int size, void *stream)
{
	struct parser *parser = stream;
	int length = 0, c = 0;

	while (length < size - 1 && c != '\n' && (c = getc(parser->file)) != EOF) {
		line[length++] = (char)c;
		if (c == '\0') {
			parser->line++;
			complain(parser, parser->line, "a NUL byte: this is no text");
			return skip_line(parser, line, c);
		}
	}
	if (length == 0)
		return NULL;
	line[length] = '\0';
	parser->line++;
	check_heading(parser, line);
	if (length + 1 < size || line[length - 1] == '\n')
		return line;
	c = getc(parser->file);
	if (c == EOF)
		return line;
	complain(parser, parser->line,
		 "longer than %d bytes; a value may go on in the next line if that begins with a "
		 "blank",
		 size - 2);
	return skip_line(parser, line, c);
}

static void check_conninfo(struct parser *parser)
{
	char *message = NULL;
	PQconninfoOption *options;

	parser->config->conninfo = text_take(&parser->conninfo);
	options = PQconninfoParse(parser->config->conninfo, &message);
	if (options == NULL) {
		if (message != NULL && *message != '\0')
			message[strcspn(message, "\n")] = '\0';
		complain(parser, parser->conninfo_line, "conninfo: %s",
			 message != NULL ? message : "out of memory");
	}
	PQconninfoFree(options);
	PQfreemem(message);
}

static void check_alertmanager(struct parser *parser)
{
	struct config *config = parser->config;
	char reason[512];

	config->alertmanager_url = text_take(&parser->alertmanager_url);
	if (!alertmanager_check(config->alertmanager_url, reason, sizeof(reason)))
		complain(parser, parser->alertmanager_url_line, "url: %s", reason);
	if (config->bearer_token_file != NULL && config->basic_auth_file != NULL)
		complain(parser, parser->basic_auth_line,
			 "basic_auth_file and bearer_token_file cannot both be given");
}

static struct config *defaults(void)
{
	struct config *config = memory_new(1, sizeof(*config));
	char host[256] = "";

	if (gethostname(host, sizeof(host) - 1) != 0 || *host == '\0')
		strcpy(host, "localhost");
	config->host = memory_copy(host);
	config->instance = memory_copy(host);
	config->segment_name = memory_copy("/cbshm");
	config->segment_capacity = CBSHM_CAPACITY_DEFAULT;
	config->segment_mode = 0640;
	config->segment_group = CONFIG_NO_GROUP;
	config->socket_path = memory_copy("/run/cbshm/io.cbshm");
	config->socket_mode = 0660;
	config->socket_group = CONFIG_NO_GROUP;
	config->admin_group = CONFIG_NO_GROUP;
	config->resend_interval = 60;
	config->metrics_listen = memory_copy("");
	config->metrics_breakers = METRICS_BREAKERS_DEFAULT;
	config->log_level = LOG_LEVEL_INFO;
	return config;
}

/* In the state directory that the service manager gives; without one nowhere. */
static void default_snapshot(struct config *config)
{
	const char *directory = getenv("STATE_DIRECTORY");
	struct text path = {0};

	if (config->snapshot != NULL)
		return;
	if (directory != NULL && *directory == '/')
		text_format(&path, "%.*s%s.snapshot", (int)strcspn(directory, ":"), directory,
			    config->segment_name);
	config->snapshot = text_take(&path);
}

int config_parse(FILE *file, const char *path, struct config **config, char *message,
		 size_t message_size)
{
	struct parser parser = {.file = file, .path = path, .config = defaults()};
	int broken, rc = 0;

	broken = ini_parse_stream(read_line, &parser, handle, &parser);
	if (broken > 0)
		complain(&parser, broken, "neither [section] nor key = value nor a comment");
	check_conninfo(&parser);
	check_alertmanager(&parser);
	default_snapshot(parser.config);
	if (ferror(file) || broken < 0) {
		rc = ferror(file) ? -EIO : -ENOMEM;
		snprintf(message, message_size, "%s: %s", path, strerror(-rc));
	} else if (parser.messages.length > 0) {
		rc = -EINVAL;
		snprintf(message, message_size, "%s", parser.messages.data);
	}
	free(parser.messages.data);
	if (rc == 0)
		*config = parser.config;
	else
		config_free(parser.config);
	return rc;
}

int config_load(const char *path, struct config **config, char *message, size_t message_size)
{
	FILE *file = fopen(path, "re");
	int rc;

	if (file == NULL) {
		rc = -errno;
		snprintf(message, message_size, "%s: %s", path, strerror(errno));
		return rc;
	}
	rc = config_parse(file, path, config, message, message_size);
	fclose(file);
	return rc;
}

void config_free(struct config *config)
{
	if (config == NULL)
		return;
	free(config->conninfo);
	free(config->segment_name);
	free(config->snapshot);
	free(config->socket_path);
	free(config->alertmanager_url);
	free(config->bearer_token_file);
	free(config->basic_auth_file);
	free(config->ca_file);
	free(config->runbook_url);
	free(config->metrics_listen);
	free(config->host);
	free(config->instance);
	free(config);
}
