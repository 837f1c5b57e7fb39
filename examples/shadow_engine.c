/*
 * shadow_engine.c - a new code path that runs beside the one it is to replace, behind a breaker
 *
 * SPDX-License-Identifier: ISC
 *
 * An example to copy from, not a part of cbshm. It forecasts each day's highest temperature as the
 * mean of the 28 days before. Both paths see every day (shadow mode); the breaker decides whose
 * forecast is served:
 *
 *	reference path	adds up the 28 days again, every day
 *	new path	keeps a running sum: one addition and one subtraction a day
 *
 * The new path has a bug of the kind that passes its tests: it keeps tenths of a degree in unsigned
 * integers. In the shipped data that is wrong for the 28 days after 2012-01-19 and 2014-02-05, which
 * stayed below zero. So the drift rises, the breaker trips, the reference path serves, and
 * when the TTL has passed the new path gets its next chance.
 *
 * Every 7 days it reports the drift: the share of forecasts in which the paths disagree.
 */
#define _POSIX_C_SOURCE 200809L /* clock_nanosleep() */

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cbshm.h>

#define MEMORY_DAYS       28   /* what a forecast is made from */
#define WINDOW_DAYS       7    /* what one drift report is made from */
#define TOLERANCE         0.05 /* degrees; further apart is a disagreement */
#define REPORT_TIMEOUT_MS 1000

struct day {
	char date[11];
	double temp_max;
};

/* The new path's state. The bug is the type of `tenths`: -1.1 degrees become 65525 tenths. */
struct running_mean {
	uint16_t tenths[MEMORY_DAYS];
	uint32_t sum;
};

/* What the paths said about the days of one report. */
struct window {
	const char *first_day;
	const char *last_day;
	int days;
	int disagreements;
	double worst; /* degrees */
};

struct engine {
	struct cbshm *client;
	struct cbshm_breaker *breaker;
	struct running_mean new_path;
	struct window window;
	bool on_new_path; /* who serves now */
	bool was_open;    /* what the breaker said for the last day */
	bool unwatched;   /* the last drift report failed: nobody would stop the new path */
	long served_new;
	long served_reference;
	long wrong_served;    /* disagreements that reached the user */
	long wrong_prevented; /* disagreements that the breaker kept away */
	long trips;
	long recoveries;
};

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- the two paths ---------------------------------------------------------------------- */

static double reference_forecast(const struct day *days, size_t today)
{
	double sum = 0;

	for (size_t i = today - MEMORY_DAYS; i < today; i++)
		sum += days[i].temp_max;
	return sum / MEMORY_DAYS;
}

static void new_path_learn(struct running_mean *mean, size_t today, double temp_max)
{
	uint16_t *oldest = &mean->tenths[today % MEMORY_DAYS];

	mean->sum -= *oldest;
	*oldest = (uint16_t)lround(temp_max * 10);
	mean->sum += *oldest;
}

static double new_path_forecast(const struct running_mean *mean)
{
	return mean->sum / (10.0 * MEMORY_DAYS);
}

/* ---- the breaker around them ------------------------------------------------------------ */

/*
 * Whose forecast is served. This is all that stands in the hot path: one load and one compare while
 * the breaker is closed. Without a segment the library answers "enabled" and says so in `basis`;
 * this engine then prefers the reference path, as it does while its reports reach nobody.
 */
static bool may_use_new_path(const struct engine *engine, struct cbshm_decision *decision)
{
	*decision = cbshm_check(engine->breaker);
	return !decision->disabled && decision->basis != CBSHM_BASIS_NO_SEGMENT &&
	       !engine->unwatched;
}

/* Says why the traffic moved. */
static void print_route(const struct engine *engine, const char *date,
			struct cbshm_decision decision)
{
	struct cbshm_state state;

	printf("%s  %s serves: ", date,
	       engine->on_new_path ? "the new path" : "the reference path");
	if (decision.basis == CBSHM_BASIS_NO_SEGMENT)
		printf("no segment to read\n");
	else if (engine->unwatched)
		printf("drift reports do not get through\n");
	else if (!decision.disabled)
		printf("breaker closed (epoch %" PRIu32 ")\n", decision.epoch);
	else if (cbshm_get_state(engine->breaker, &state) == 0 && state.disabled)
		printf("opened by %s, %s (epoch %" PRIu32 ")\n", state.disabled_by,
		       state.disabled_reason, decision.epoch);
	else
		printf("breaker open (epoch %" PRIu32 ")\n", decision.epoch);
	fflush(stdout);
}

static void route(struct engine *engine, const char *date, bool first)
{
	struct cbshm_decision decision;
	bool on_new_path = may_use_new_path(engine, &decision);

	if (!first && decision.disabled != engine->was_open)
		*(decision.disabled ? &engine->trips : &engine->recoveries) += 1;
	engine->was_open = decision.disabled;
	if (first || on_new_path != engine->on_new_path) {
		engine->on_new_path = on_new_path;
		print_route(engine, date, decision);
	}
}

/*
 * Reports the window and begins the next. A report waits for its commit, a millisecond or so; an
 * engine with no time to spare makes it from another thread.
 */
static void report(struct engine *engine)
{
	struct window *window = &engine->window;
	struct cbshm_call call = {.timeout_ms = REPORT_TIMEOUT_MS};
	char tripped[CBSHM_UUID_SIZE] = "";
	char details[160];
	double drift = (double)window->disagreements / window->days;

	snprintf(details, sizeof(details),
		 "{\"first_day\":\"%s\",\"last_day\":\"%s\",\"disagreements\":%d,"
		 "\"worst_degrees\":%.2f}",
		 window->first_day, window->last_day, window->disagreements, window->worst);
	int error = cbshm_report_drift(engine->client, cbshm_breaker_name(engine->breaker), drift,
				       window->days, details, &call, tripped);
	if (error && !engine->unwatched)
		printf("%s  report failed: %s\n", window->last_day,
		       call.message[0] ? call.message : cbshm_strerror(error));
	else if (window->disagreements > 0)
		printf("%s  drift %.2f: the paths disagree on %d of %d days, by up to %.1f "
		       "degrees%s%s\n",
		       window->last_day, drift, window->disagreements, window->days, window->worst,
		       tripped[0] ? "; tripped, incident " : "", tripped);
	fflush(stdout);
	engine->unwatched = error != 0;
	*window = (struct window){0};
}

static void live_one_day(struct engine *engine, const struct day *days, size_t today)
{
	double reference = reference_forecast(days, today);
	double forecast = new_path_forecast(&engine->new_path);
	double apart = fabs(forecast - reference);
	struct window *window = &engine->window;

	route(engine, days[today].date, today == MEMORY_DAYS);
	/* Here a real engine would serve `engine->on_new_path ? forecast : reference`. */
	*(engine->on_new_path ? &engine->served_new : &engine->served_reference) += 1;
	if (apart > TOLERANCE) {
		*(engine->on_new_path ? &engine->wrong_served : &engine->wrong_prevented) += 1;
		window->disagreements++;
	}
	window->worst = fmax(window->worst, apart);
	if (window->days++ == 0)
		window->first_day = days[today].date;
	window->last_day = days[today].date;
	if (window->days == WINDOW_DAYS)
		report(engine);
}

static void live(struct engine *engine, const struct day *days, size_t count, double speed)
{
	int64_t start = now_ns();

	for (size_t today = 0; today < count; today++) {
		if (today >= MEMORY_DAYS)
			live_one_day(engine, days, today);
		new_path_learn(&engine->new_path, today, days[today].temp_max);
		if (speed > 0 && today >= MEMORY_DAYS) {
			int64_t due =
				start + (int64_t)((double)(today - MEMORY_DAYS + 1) * 1e9 / speed);
			struct timespec until = {due / 1000000000, due % 1000000000};
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
		}
	}
}

/* ---- what a check costs ----------------------------------------------------------------- */

#define BATCHES 101
#define BATCH   200000

static int compare_doubles(const void *a, const void *b)
{
	double left = *(const double *)a;
	double right = *(const double *)b;

	return (left > right) - (left < right);
}

/* Nanoseconds: the median over the batches, so that a descheduled one does not count. */
static double measure_check(const struct cbshm_breaker *breaker)
{
	double batches[BATCHES];
	volatile long sink;

	for (int b = 0; b < BATCHES; b++) {
		long disabled = 0;
		int64_t start = now_ns();
		for (long i = 0; i < BATCH; i++)
			disabled += cbshm_is_disabled(breaker);
		batches[b] = (double)(now_ns() - start) / BATCH;
		sink = disabled;
	}
	(void)sink;
	qsort(batches, BATCHES, sizeof(batches[0]), compare_doubles);
	return batches[BATCHES / 2];
}

static void print_summary(const struct engine *engine)
{
	double ns = measure_check(engine->breaker);
	const char *state = cbshm_is_disabled(engine->breaker) ? "open" : "closed";

	printf("\n%ld forecasts: %ld served by the new path, %ld by the reference path\n",
	       engine->served_new + engine->served_reference, engine->served_new,
	       engine->served_reference);
	printf("wrong forecasts of the new path: %ld served, %ld kept away by the breaker\n",
	       engine->wrong_served, engine->wrong_prevented);
	printf("one check costs %.2f ns (breaker %s; in a loop; median of %d batches of %d)\n", ns,
	       state, BATCHES, BATCH);
	printf("trips=%ld recoveries=%ld ns_per_check=%.2f\n", engine->trips, engine->recoveries,
	       ns);
}

/* ---- input ------------------------------------------------------------------------------ */

/* Takes the columns date and temp_max of date,precipitation,temp_max,... */
static bool parse_day(const char *line, struct day *day)
{
	int used = 0;

	return sscanf(line, "%10[0-9-],%*[^,],%lf%n", day->date, &day->temp_max, &used) == 2 &&
	       line[used] == ',' && strlen(day->date) == 10 && fabs(day->temp_max) < 100;
}

/* Reads the whole file; returns the days, or NULL after saying what is wrong. */
static struct day *read_days(const char *path, size_t *count)
{
	struct day *days = NULL;
	char line[256];
	size_t number = 0;
	FILE *file = fopen(path, "r");

	*count = 0;
	if (!file) {
		perror(path);
		return NULL;
	}
	while (fgets(line, sizeof(line), file)) {
		if (number++ == 0)
			continue; /* the header */
		struct day *grown = realloc(days, (*count + 1) * sizeof(*days));
		if (!grown || !parse_day(line, &grown[*count])) {
			fprintf(stderr, "%s:%zu: %s\n", path, number,
				grown ? "not date,precipitation,temp_max,..." : "out of memory");
			free(grown ? grown : days);
			fclose(file);
			return NULL;
		}
		days = grown;
		++*count;
	}
	fclose(file);
	if (*count <= MEMORY_DAYS) {
		fprintf(stderr, "%s: needs more than %d days\n", path, MEMORY_DAYS);
		free(days);
		return NULL;
	}
	return days;
}

struct arguments {
	const char *data;
	const char *breaker;
	double speed; /* days a second; 0 = as fast as it goes */
};

static const char usage[] =
	"usage: shadow_engine [--data FILE] [--breaker NAME] [--speed DAYS-PER-SECOND]\n"
	"\n"
	"  --data FILE       daily weather (default: examples/data/seattle-weather.csv)\n"
	"  --breaker NAME    the breaker that guards the new path (default: forecast_v2)\n"
	"  --speed N         days a second, 0 for no pause (default: 100)\n"
	"\n"
	"The agent is found through CBSHM_SEGMENT and CBSHM_SOCKET.\n";

/* Returns -1 to go on, or the exit status. */
static int parse_arguments(int argc, char **argv, struct arguments *arguments)
{
	static const struct option options[] = {{"data", required_argument, NULL, 'd'},
						{"breaker", required_argument, NULL, 'b'},
						{"speed", required_argument, NULL, 's'},
						{"help", no_argument, NULL, 'h'},
						{NULL, 0, NULL, 0}};
	char *end;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option) {
		case 'd':
			arguments->data = optarg;
			break;
		case 'b':
			arguments->breaker = optarg;
			break;
		case 's':
			arguments->speed = strtod(optarg, &end);
			if (end != optarg && !*end && arguments->speed >= 0 &&
			    arguments->speed <= 1e6)
				break;
			fprintf(stderr, "shadow_engine: --speed: a number from 0 to 1000000\n");
			return 2;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs(usage, stderr);
			return 2;
		}
	if (optind < argc)
		fputs(usage, stderr);
	return optind < argc ? 2 : -1;
}

int main(int argc, char **argv)
{
	struct arguments arguments = {"examples/data/seattle-weather.csv", "forecast_v2", 100};
	struct engine engine = {0};
	size_t count;
	int status = parse_arguments(argc, argv, &arguments);

	if (status >= 0)
		return status;
	struct day *days = read_days(arguments.data, &count);
	if (!days)
		return 1;
	int error = cbshm_open(NULL, &engine.client);
	if (!error)
		error = cbshm_breaker_open(engine.client, arguments.breaker, &engine.breaker);
	if (error) {
		fprintf(stderr, "shadow_engine: %s\n", cbshm_strerror(error));
	} else {
		live(&engine, days, count, arguments.speed);
		print_summary(&engine);
	}
	cbshm_breaker_close(engine.breaker);
	cbshm_close(engine.client);
	free(days);
	return error ? 1 : 0;
}
