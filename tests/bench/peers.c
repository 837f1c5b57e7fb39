/*
 * peers.c - a check beside the other ways to ask, from one process, what another one has decided
 *
 * SPDX-License-Identifier: ISC
 *
 *	peers [--repetitions N] [--iterations N] [--json FILE] [--redis SOCKET] [--postgres CONNINFO]
 *
 * Each peer answers one question for one breaker as fast as it can: the lock is free, LMDB's reader keeps its
 * transaction, Redis and PostgreSQL are asked over an open Unix socket, the statement is prepared. What is not there is left
 * out, and said.
 */
#include "config.h"

#include <errno.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef HAVE_LMDB
#include <lmdb.h>
#endif

#include "tests/bench/measure.h"
#include "tests/support/segment.h"

#define PEERS_MAX 4

static void die(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(2);
}

MEASURED static uint64_t run_check(const void *arg, uint64_t iterations)
{
	const struct cbshm_breaker *breaker = arg;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		if (__builtin_expect(cbshm_is_disabled(breaker), 0))
			open++;
		FORGET();
	}
	return open;
}

/* ---- a lock that processes share -------------------------------------------------------- */

struct shared {
	pthread_rwlock_t lock;
	uint64_t disabled;
};

static struct shared *shared_open(void)
{
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_rwlockattr_t attributes;

	if (shared == MAP_FAILED)
		die("mmap", strerror(errno));
	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_rwlock_init(&shared->lock, &attributes);
	return shared;
}

MEASURED static uint64_t run_rwlock(const void *arg, uint64_t iterations)
{
	struct shared *shared = (struct shared *)(uintptr_t)arg;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		pthread_rwlock_rdlock(&shared->lock);
		open += shared->disabled;
		pthread_rwlock_unlock(&shared->lock);
		FORGET();
	}
	return open;
}

/* ---- LMDB ------------------------------------------------------------------------------- */

#ifdef HAVE_LMDB
struct lmdb {
	char directory[64];
	MDB_env *env;
	MDB_dbi dbi;
	MDB_txn *reader;
};

static void lmdb_check(int error)
{
	if (error)
		die("LMDB", mdb_strerror(error));
}

static char closed_name[] = "closed", closed_value[] = "0";

static inline MDB_val lmdb_name(void)
{
	return (MDB_val){sizeof(closed_name) - 1, closed_name};
}

static struct lmdb *lmdb_open(void)
{
	struct lmdb *lmdb = bench_memory(1, sizeof(*lmdb));
	MDB_val name = lmdb_name(), value = {1, closed_value};
	MDB_txn *writer;

	strcpy(lmdb->directory, "/dev/shm/cbshm-bench-XXXXXX");
	if (!mkdtemp(lmdb->directory))
		die(lmdb->directory, strerror(errno));
	lmdb_check(mdb_env_create(&lmdb->env));
	lmdb_check(mdb_env_open(lmdb->env, lmdb->directory, MDB_NOSYNC, 0600));
	lmdb_check(mdb_txn_begin(lmdb->env, NULL, 0, &writer));
	lmdb_check(mdb_dbi_open(writer, NULL, 0, &lmdb->dbi));
	lmdb_check(mdb_put(writer, lmdb->dbi, &name, &value, 0));
	lmdb_check(mdb_txn_commit(writer));
	lmdb_check(mdb_txn_begin(lmdb->env, NULL, MDB_RDONLY, &lmdb->reader));
	mdb_txn_reset(lmdb->reader);
	return lmdb;
}

MEASURED static uint64_t run_lmdb(const void *arg, uint64_t iterations)
{
	const struct lmdb *lmdb = arg;
	MDB_val name = lmdb_name(), value;
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		lmdb_check(mdb_txn_renew(lmdb->reader));
		lmdb_check(mdb_get(lmdb->reader, lmdb->dbi, &name, &value));
		open += *(const char *)value.mv_data == '1';
		mdb_txn_reset(lmdb->reader);
	}
	return open;
}

static void lmdb_close(struct lmdb *lmdb)
{
	static const char *const files[] = {"data.mdb", "lock.mdb"};
	char path[96];

	mdb_txn_abort(lmdb->reader);
	mdb_env_close(lmdb->env);
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", lmdb->directory, files[i]);
		unlink(path);
	}
	rmdir(lmdb->directory);
	free(lmdb);
}
#endif

/* ---- Redis ------------------------------------------------------------------------------ */

static void redis_ask(int fd, const char *question, char *answer, size_t size)
{
	size_t length = strlen(question);

	if (write(fd, question, length) != (ssize_t)length)
		die("Redis", "cannot be asked");
	ssize_t count = read(fd, answer, size - 1);
	if (count < 3 || answer[count - 1] != '\n')
		die("Redis", "no whole answer");
	answer[count] = '\0';
}

static int redis_open(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char answer[64];

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		die(path, strerror(errno));
	redis_ask(fd, "*3\r\n$3\r\nSET\r\n$6\r\nclosed\r\n$1\r\n0\r\n", answer, sizeof(answer));
	return fd;
}

MEASURED static uint64_t run_redis(const void *arg, uint64_t iterations)
{
	int fd = *(const int *)arg;
	uint64_t open = 0;
	char answer[64];

	for (uint64_t i = 0; i < iterations; i++) {
		redis_ask(fd, "*2\r\n$3\r\nGET\r\n$6\r\nclosed\r\n", answer, sizeof(answer));
		if (strcmp(answer, "$1\r\n0\r\n") != 0)
			open++;
	}
	return open;
}

/* ---- PostgreSQL ------------------------------------------------------------------------- */

static PGconn *postgres_open(const char *conninfo)
{
	PGconn *connection = PQconnectdb(conninfo);
	PGresult *result;

	if (PQstatus(connection) != CONNECTION_OK)
		die("PostgreSQL", PQerrorMessage(connection));
	result = PQprepare(connection, "ask", "SELECT disabled FROM cbshm.breaker WHERE name = $1",
			   1, NULL);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("PostgreSQL", PQerrorMessage(connection));
	PQclear(result);
	return connection;
}

MEASURED static uint64_t run_postgres(const void *arg, uint64_t iterations)
{
	PGconn *connection = (PGconn *)(uintptr_t)arg;
	const char *values[] = {"closed"};
	uint64_t open = 0;

	for (uint64_t i = 0; i < iterations; i++) {
		PGresult *result = PQexecPrepared(connection, "ask", 1, values, NULL, NULL, 1);

		if (PQntuples(result) != 1)
			die("PostgreSQL", PQerrorMessage(connection));
		open += *PQgetvalue(result, 0, 0) != 0;
		PQclear(result);
	}
	return open;
}

/* ---- all of them ------------------------------------------------------------------------ */

static struct pair pair_of(const struct cbshm_breaker *breaker, const char *key, const char *title,
			   measured_run *run, const void *peer, uint64_t iterations, uint64_t share)
{
	uint64_t less = iterations / share;

	return (struct pair){.key = key,
			     .title = "closed, inlined",
			     .beside_title = title,
			     .run = {run_check, breaker, iterations, NULL},
			     .beside = {run, peer, less ? less : 1, NULL}};
}

int main(int argc, char **argv)
{
	struct bench_options options = {.repetitions = 201, .iterations = 100000};
	struct pair pairs[PEERS_MAX];
	PGconn *postgres = NULL;
	size_t count = 0;
	int redis = -1;

	if (!bench_options_parse(&options, argc, argv))
		return 2;
	const char *name = scratch_segment();
	struct segment_writer *writer = scratch_writer(name, 16);
	put(writer, row_closed("closed", 1));
	struct cbshm *client = scratch_client(name);
	const struct cbshm_breaker *breaker = scratch_breaker(client, "closed");
	struct shared *shared = shared_open();

	pairs[count++] = pair_of(breaker, "rwlock", "process-shared rwlock", run_rwlock, shared,
				 options.iterations, 20);
#ifdef HAVE_LMDB
	struct lmdb *lmdb = lmdb_open();
	pairs[count++] =
		pair_of(breaker, "lmdb", "LMDB get", run_lmdb, lmdb, options.iterations, 100);
#else
	puts("SKIP LMDB: built without it (liblmdb-dev)");
#endif
	if (options.redis) {
		redis = redis_open(options.redis);
		pairs[count++] = pair_of(breaker, "redis", "Redis GET", run_redis, &redis,
					 options.iterations, 5000);
	} else {
		puts("SKIP Redis: no --redis");
	}
	if (options.postgres) {
		postgres = postgres_open(options.postgres);
		pairs[count++] = pair_of(breaker, "postgres", "SELECT, prepared", run_postgres,
					 postgres, options.iterations, 5000);
	} else {
		puts("SKIP PostgreSQL: no --postgres");
	}
	/* Not bound to a processor: a server that shares it would have to wait for this program's turn to end. */
	measure(pairs, count, options.repetitions);
	print_table(pairs, count, options.repetitions);
	int error = options.json ? print_json(options.json, "peers", pairs, count,
					      options.repetitions, "")
				 : 0;
#ifdef HAVE_LMDB
	lmdb_close(lmdb);
#endif
	if (redis >= 0)
		close(redis);
	PQfinish(postgres);
	cbshm_close(client);
	segment_writer_close(writer);
	return error;
}
