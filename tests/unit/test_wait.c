/*
 * test_wait.c - cbshm_wait(), and how readers find the next segment
 *
 * SPDX-License-Identifier: ISC
 *
 * The writers are real; those that have to die are processes of their own.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cbshm/latch.h"
#include "tests/support/child.h"
#include "tests/support/segment.h"
#include "tests/support/tap.h"

#define LONG_MS 30000 /* far more than anything here takes */
#define ROUNDS  200

static void sleep_ms(long ms)
{
	struct timespec time = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&time, NULL);
}

/* A live mirror, as an agent's. */
static struct segment_writer *live_writer(const char *name, uint32_t capacity)
{
	struct segment_writer *writer = scratch_writer(name, capacity);

	segment_writer_heartbeat(writer);
	segment_writer_set_state(writer, CBSHM_SEGMENT_LIVE);
	return writer;
}

/* A writer in a process of its own, which has put `row` and then waits to be killed. */
static pid_t writer_process(const char *name, uint32_t capacity, struct breaker_row row)
{
	int ready[2];
	char byte;

	if (pipe(ready) < 0)
		return -1;
	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		put(live_writer(name, capacity), row);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	CU_ASSERT_EQUAL(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return child;
}

static void kill_writer(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* Calls again until nothing changes any more: a spurious return is allowed. */
static void settle(struct cbshm *client, struct cbshm_breaker *const *breakers, size_t count,
		   uint64_t *seen)
{
	int error;

	for (int i = 0; i < 100; i++) {
		error = cbshm_wait(client, breakers, count, seen, 0);
		if (error)
			break;
	}
	CU_ASSERT_EQUAL(error, CBSHM_ERR_TIMEOUT);
}

static void test_tokens(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *two[] = {scratch_breaker(client, "a"), scratch_breaker(client, "b")};
	uint64_t seen[2] = {0, 0}, all = 0, before;

	CU_ASSERT_EQUAL(cbshm_wait(client, two, 2, seen, 0), 0);
	CU_ASSERT(seen[0] != 0 && seen[1] != 0);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, 0), 0);
	CU_ASSERT(all != 0);
	settle(client, two, 2, seen);
	settle(client, NULL, 0, &all);

	before = seen[0];
	put(writer, row_closed("b", 1)); /* created */
	CU_ASSERT_EQUAL(cbshm_wait(client, two, 2, seen, LONG_MS), 0);
	CU_ASSERT_EQUAL(seen[0], before);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	settle(client, NULL, 0, &all);

	before = seen[1];
	put(writer, row_open("a", 7)); /* created, open */
	CU_ASSERT_EQUAL(cbshm_wait(client, two, 2, seen, LONG_MS), 0);
	CU_ASSERT_EQUAL(seen[1], before);
	put(writer, row_open("a", 8)); /* only its version */
	CU_ASSERT_EQUAL(cbshm_wait(client, &two[0], 1, &seen[0], LONG_MS), 0);
	segment_writer_remove(writer, "a");
	segment_writer_publish(writer);
	CU_ASSERT_EQUAL(cbshm_wait(client, two, 1, seen, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);

	/* Another breaker's change is none of the first one's. */
	settle(client, two, 1, seen);
	put(writer, row_closed("c", 1));
	CU_ASSERT_EQUAL(cbshm_wait(client, two, 1, seen, 10), CBSHM_ERR_TIMEOUT);
	cbshm_close(client);
	segment_writer_close(writer);
}

struct ping {
	const char *segment;
	uint32_t epoch; /* the waiter's answer */
};

static void *wait_for_rounds(void *arg)
{
	struct ping *ping = arg;
	struct cbshm *client = scratch_client(ping->segment);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	uint64_t seen = 0;
	uint32_t epoch = 0;

	while (epoch <= ROUNDS && cbshm_wait(client, &breaker, 1, &seen, LONG_MS) == 0) {
		epoch = cbshm_check(breaker).epoch;
		__atomic_store_n(&ping->epoch, epoch, __ATOMIC_RELEASE);
	}
	cbshm_close(client);
	return NULL;
}

/* Each round waits for the waiter's answer to the last change. One that were lost would cost a second. */
static void test_no_lost_wakeup(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct ping ping = {name, 0};
	time_t begin = time(NULL);
	pthread_t thread;

	CU_ASSERT_EQUAL_FATAL(pthread_create(&thread, NULL, wait_for_rounds, &ping), 0);
	for (uint32_t version = 1; version <= ROUNDS + 1; version++) {
		put(writer, version % 2 ? row_open("a", version) : row_closed("a", version));
		while (__atomic_load_n(&ping.epoch, __ATOMIC_ACQUIRE) != version)
			sched_yield();
	}
	pthread_join(thread, NULL);
	CU_ASSERT(time(NULL) - begin < ROUNDS / 2);
	segment_writer_close(writer);
}

static void test_agent_dies(void)
{
	const char *name = scratch_segment();
	pid_t child = writer_process(name, 64, row_open("a", 3));
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	struct cbshm_health health;
	uint64_t one = 0, all = 0;

	settle(client, &breaker, 1, &one);
	settle(client, NULL, 0, &all);
	kill_writer(child);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(!health.agent_alive && !health.agent_hung && !health.database_live);
	CU_ASSERT(cbshm_is_disabled(breaker));

	/* Another one comes, and loses its database. */
	struct segment_writer *writer = live_writer(name, 64);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	settle(client, &breaker, 1, &one);
	settle(client, NULL, 0, &all);
	segment_writer_set_state(writer, CBSHM_SEGMENT_DISCONNECTED);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	segment_writer_close(writer);
	cbshm_close(client);
}

static void test_agent_hangs(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct segment_view view = scratch_map(name);
	struct cbshm *client = scratch_client(name);
	struct cbshm_health health;
	struct timespec now;
	uint64_t all = 0;

	settle(client, NULL, 0, &all);
	clock_gettime(CLOCK_MONOTONIC, &now);
	word_store(&segment_header(&view)->heartbeat,
		   (uint64_t)now.tv_sec * 1000000000 - (CBSHM_HUNG_AFTER_US + 1000000) * 1000);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.agent_alive && health.agent_hung && !health.database_live);
	segment_writer_heartbeat(writer);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
	CU_ASSERT(health.agent_alive && !health.agent_hung && health.database_live);
	scratch_unmap(&view);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_replaced(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	uint64_t one = 0, all = 0;

	put(writer, row_closed("a", 1));
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	settle(client, &breaker, 1, &one);
	segment_writer_close(writer);
	writer = live_writer(name, 128);
	settle(client, &breaker, 1, &one);
	settle(client, NULL, 0, &all);
	put(writer, row_open("a", 2));
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

/* Of two segments of one name that know nothing of each other, the first one's agent being dead. */
static void removed(bool by_health)
{
	const char *name = scratch_segment();
	pid_t child = writer_process(name, 64, row_closed("a", 5));
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	uint64_t one = 0;

	settle(client, &breaker, 1, &one);
	kill_writer(child);
	scratch_remove(name);
	CU_ASSERT(!cbshm_is_disabled(breaker));
	settle(client, &breaker, 1, &one);
	struct segment_writer *writer = live_writer(name, 64);
	put(writer, row_open("a", 6));
	if (by_health) {
		struct cbshm_health health = {0};

		for (int i = 0; i < 100 && !health.agent_alive; i++) {
			CU_ASSERT_EQUAL(cbshm_health(client, &health), 0);
			sleep_ms(50);
		}
	} else {
		CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	}
	CU_ASSERT(cbshm_is_disabled(breaker));
	CU_ASSERT_EQUAL(cbshm_check(breaker).epoch, 6);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_removed(void)
{
	removed(true);
	removed(false);
}

static void test_comes(void)
{
	const char *name = scratch_segment();
	struct cbshm *client = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	uint64_t one = 0, all = 0;

	settle(client, &breaker, 1, &one);
	settle(client, NULL, 0, &all);
	struct segment_writer *writer = live_writer(name, 64);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), 0);
	cbshm_close(client);
	segment_writer_close(writer);
}

/* Nobody stores anything when a TTL ends and the agent is dead. */
static void test_ttl(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct breaker_row row = row_open("a", 1);
	uint64_t one = 0;

	row.auto_recover = true;
	row.disabled_until = scratch_now() + 300000;
	put(writer, row);
	segment_writer_close(writer);
	struct cbshm_breaker *breaker = scratch_breaker(client, "a");
	while (cbshm_is_disabled(breaker))
		CU_ASSERT_EQUAL_FATAL(cbshm_wait(client, &breaker, 1, &one, LONG_MS), 0);
	cbshm_close(client);
}

static void on_alarm(int number)
{
	(void)number;
}

static void test_signal(void)
{
	const char *name = scratch_segment();
	struct segment_writer *writer = live_writer(name, 64);
	struct cbshm *client = scratch_client(name);
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	uint64_t all = 0;

	settle(client, NULL, 0, &all);
	sigaction(SIGUSR1, &action, NULL);
	fflush(stdout);
	pid_t child = child_fork();
	if (child == 0) {
		for (;;) {
			sleep_ms(20);
			kill(getppid(), SIGUSR1);
		}
	}
	errno = 0;
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &all, LONG_MS), CBSHM_ERR_SYSTEM);
	CU_ASSERT_EQUAL(errno, EINTR);
	kill_writer(child);
	cbshm_close(client);
	segment_writer_close(writer);
}

static void test_arguments(void)
{
	const char *name = scratch_segment();
	struct cbshm *client = scratch_client(name), *other = scratch_client(name);
	struct cbshm_breaker *breaker = scratch_breaker(other, "a"), *none = NULL;
	uint64_t seen = 0;

	CU_ASSERT_EQUAL(cbshm_wait(NULL, NULL, 0, &seen, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, NULL, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 1, &seen, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 0, &seen, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, &breaker, 1, &seen, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, &none, 1, &seen, 0), CBSHM_ERR_INVALID);
	CU_ASSERT_EQUAL(cbshm_wait(client, NULL, 0, &seen, -2), CBSHM_ERR_INVALID);
	cbshm_close(client);
	cbshm_close(other);
}

int main(void)
{
	CU_initialize_registry();
	CU_pSuite suite = CU_add_suite("wait", NULL, NULL);
	CU_add_test(suite, "tokens tell one breaker's changes from another's", test_tokens);
	CU_add_test(suite, "no wakeup is lost", test_no_lost_wakeup);
	CU_add_test(suite, "an agent that dies, and one that loses its database", test_agent_dies);
	CU_add_test(suite, "an agent that hangs", test_agent_hangs);
	CU_add_test(suite, "a segment that is replaced", test_replaced);
	CU_add_test(suite, "a segment removed while its agent was dead", test_removed);
	CU_add_test(suite, "a segment that comes", test_comes);
	CU_add_test(suite, "a TTL that ends without an agent", test_ttl);
	CU_add_test(suite, "a signal", test_signal);
	CU_add_test(suite, "arguments", test_arguments);
	return tap_run_cunit();
}
