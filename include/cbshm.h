/*
 * cbshm.h - circuit breakers that every process of a host reads from shared memory
 *
 * SPDX-License-Identifier: ISC
 *
 * The only header an engine needs.
 *
 *	struct cbshm *client;
 *	struct cbshm_breaker *breaker;
 *
 *	cbshm_open(NULL, &client);
 *	cbshm_breaker_open(client, "costsim_v2", &breaker);
 *	...
 *	if (cbshm_is_disabled(breaker))
 *		price = reference_path(order);
 *	else
 *		price = risky_path(order);
 *
 * Reads (cbshm_is_disabled() and its family, cbshm_get_state(), cbshm_foreach(),
 * cbshm_health()) come from a shared-memory segment that cbagent(8) keeps equal to
 * Postgres. They need neither the agent nor the database to be alive.
 *
 * Writes (cbshm_report_drift() ... cbshm_set_policy()) are requests to the agent over its Unix
 * socket; when one returns 0 it is committed in Postgres, and every process of this host
 * already reads its result.
 *
 * Unless a function says otherwise: it is safe to call from any thread, it is not
 * async-signal-safe, strings are UTF-8 and NUL-terminated, and it returns 0 or a negative
 * CBSHM_ERR_* value.
 */
#ifndef CBSHM_H
#define CBSHM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) || defined(__clang__)
#define CBSHM_PUBLIC       __attribute__((visibility("default")))
#define CBSHM_MUST_CHECK   __attribute__((warn_unused_result))
#define CBSHM_LIKELY(cond) __builtin_expect(!!(cond), 1)
#else
#error "cbshm.h needs the __atomic builtins of gcc or clang"
#endif

/* A breaker's name: 1 to 128 bytes of valid UTF-8 without control characters. */
#define CBSHM_NAME_MAX 128

/* Room for the text fields of struct cbshm_state, their terminating NUL included. */
#define CBSHM_ACTOR_SIZE  73
#define CBSHM_REASON_SIZE 241

/* A UUID in its 36-character text form and its NUL. */
#define CBSHM_UUID_SIZE 37

/* A time that does not exist (never opened, no TTL). Times are microseconds since the Unix epoch. */
#define CBSHM_NO_TIME INT64_MIN

/* How long a write waits for its answer if the caller names no deadline. */
#define CBSHM_DEFAULT_TIMEOUT_MS 5000

enum cbshm_error {
	CBSHM_OK = 0,
	CBSHM_ERR_INVALID = -1,    /* an argument is out of its range; the message names it */
	CBSHM_ERR_MEMORY = -2,     /* out of memory */
	CBSHM_ERR_SYSTEM = -3,     /* a system call failed; errno tells which way */
	CBSHM_ERR_NO_SEGMENT = -4, /* there is no segment of that name: has cbagent ever run? */
	CBSHM_ERR_UNTRUSTED = -5,  /* the segment belongs to somebody who must not be believed */
	CBSHM_ERR_LAYOUT = -6, /* the segment is damaged or of a layout unknown to this library */
	CBSHM_ERR_NOT_FOUND = -7, /* no such breaker */
	CBSHM_ERR_BUSY =
		-8, /* the record changes faster than it can be read, or its row is locked */
	CBSHM_ERR_AGENT_DOWN = -9,     /* nothing answers at the agent's socket */
	CBSHM_ERR_DATABASE_DOWN = -10, /* the agent cannot reach a writable Postgres */
	/* The deadline passed; nothing was applied, or has changed. Of cbshm_flush(): some reports are
	 * not answered yet. */
	CBSHM_ERR_TIMEOUT = -11,
	CBSHM_ERR_UNKNOWN = -12,  /* sent, but whether it was applied cannot be known */
	CBSHM_ERR_DENIED = -13,   /* the agent does not allow this user to do that */
	CBSHM_ERR_PROTOCOL = -14, /* the peer at the socket does not speak io.cbshm */
	CBSHM_ERR_REFUSED = -15,  /* the agent is at a limit, or Postgres refused it */
	CBSHM_ERR_FULL = -16,     /* the buffer for reports is full: this one was dropped */
	CBSHM_ERR_BEHIND = -17    /* cbshm_wait_fleet(): at the deadline not every host had it */
};

/* A short English description of an error code; never NULL, never to be freed. Signal-safe. */
CBSHM_PUBLIC const char *cbshm_strerror(int error);

/* The version of the library at run time, such as "0.1.0". Signal-safe. */
CBSHM_PUBLIC const char *cbshm_version(void);

/* ---- the client ------------------------------------------------------------------------- */

struct cbshm;

/*
 * Where the segment and the socket are. Every field may be left NULL or 0, and the pointer itself
 * may be NULL. In order of precedence: the field, the environment, the default. A process that
 * runs with more privileges than its user (set-user-ID) ignores the environment.
 */
struct cbshm_options {
	size_t size;         /* sizeof(struct cbshm_options), so that fields can be added */
	const char *segment; /* $CBSHM_SEGMENT, default "/cbshm"; a shm_overview(7) name */
	const char *socket;  /* $CBSHM_SOCKET, default "/run/cbshm/io.cbshm" */
	const char *owner;   /* $CBSHM_OWNER, default "cbagent": the user, beside root and the
			      * caller itself, whose segment and socket are believed; name or number */
	size_t report_buffer; /* bytes for reports that nobody waits for, see cbshm_report_drift_async():
			       * CBSHM_REPORT_BUFFER_MIN to _MAX, rounded up to a power of two; 0 =
			       * CBSHM_DEFAULT_REPORT_BUFFER. No memory is used before the first report. */
};

#define CBSHM_DEFAULT_REPORT_BUFFER ((size_t)256 << 10)
#define CBSHM_REPORT_BUFFER_MIN     ((size_t)128 << 10)
#define CBSHM_REPORT_BUFFER_MAX     ((size_t)1 << 30)

/*
 * Opens a client. A missing or unusable segment is not an error: every check then answers
 * "enabled", says so through cbshm_check() and cbshm_segment_status(), and the segment is picked
 * up by itself (one attempt a second, made by the checks) when it comes. Where its name leads to
 * nothing, as in a container, the agent at the socket is asked for a read-only descriptor of it, and
 * waited for a second at most; checks do not wait.
 *
 * Errors: CBSHM_ERR_INVALID, CBSHM_ERR_MEMORY.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_open(const struct cbshm_options *options,
					     struct cbshm **client);

/* Closes the client and everything opened through it. No other thread may still use it. NULL is fine. */
CBSHM_PUBLIC void cbshm_close(struct cbshm *client);

/*
 * 0 while a segment is attached, else why not: CBSHM_ERR_NO_SEGMENT, CBSHM_ERR_UNTRUSTED,
 * CBSHM_ERR_LAYOUT or CBSHM_ERR_SYSTEM; or, where the agent was asked for it, CBSHM_ERR_DENIED,
 * CBSHM_ERR_TIMEOUT, CBSHM_ERR_REFUSED or CBSHM_ERR_PROTOCOL. Tries to attach if none is.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_segment_status(struct cbshm *client);

/* ---- the check -------------------------------------------------------------------------- */

/*
 * A handle on one breaker. The two fields belong to the library and the inline functions below:
 * `word` points at the breaker's decision word in the segment, and `live` holds the exact low half
 * that this word has while the breaker exists and is closed. (The idea to resolve a name once and
 * to read one word from then on is that of Android's system properties.)
 */
struct cbshm_breaker {
	const uint64_t *word;
	uint32_t live;
	uint32_t reserved;
};

/*
 * Resolves a name. The handle is valid until cbshm_breaker_close() or cbshm_close(), may be shared
 * by all threads, and survives fork(2), restarts of the agent and the deletion and re-creation of
 * its breaker. The breaker need not exist: it counts as enabled, and the handle starts to follow it
 * as soon as somebody creates it.
 *
 * Errors: CBSHM_ERR_INVALID (the name), CBSHM_ERR_MEMORY.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_breaker_open(struct cbshm *client, const char *name,
						     struct cbshm_breaker **breaker);

/* Closes a handle that no other thread uses any more. NULL is fine. */
CBSHM_PUBLIC void cbshm_breaker_close(struct cbshm_breaker *breaker);

/* The name the handle was opened with; valid as long as the handle. Signal-safe. */
CBSHM_PUBLIC const char *cbshm_breaker_name(const struct cbshm_breaker *breaker);

/* What a check answers when the mirror has not been confirmed by the database for longer than the caller accepts. */
enum cbshm_stale_policy {
	CBSHM_FAIL_STATIC =
		0,            /* the last known state, however old: what every handle begins with */
	CBSHM_FAIL_OPEN = 1,  /* enabled: traffic passes */
	CBSHM_FAIL_CLOSED = 2 /* disabled: traffic stays away */
};

/* An agent with its database confirms its mirror about every 2 s. */
#define CBSHM_MAX_STALE_MIN_US INT64_C(3000000)
#define CBSHM_MAX_STALE_MAX_US INT64_C(315360000000000) /* ten years */

/*
 * Sets the stale policy of a handle. `max_stale_us`: from how many microseconds without news on it
 * holds, CBSHM_MAX_STALE_MIN_US to CBSHM_MAX_STALE_MAX_US; ignored for fail static. A dead or
 * hanging agent and a lost database all end the news (cbshm_health() tells which), and so does a
 * mirror that lags behind. If there never were any (no segment, or none that the database has
 * confirmed since it was made) or their age cannot be told (CLOCK_MONOTONIC of another time
 * namespace or boot), the time counts from cbshm_open(). Answers of the policy have the basis
 * CBSHM_BASIS_STALE, and the epoch last known.
 *
 * Fail static costs nothing. With another policy each check of this handle takes the slow path and
 * asks the clock, some tens of nanoseconds; it stays lock-free and async-signal-safe.
 * cbshm_get_state() goes on to tell the last known record.
 *
 * Other threads may be checking meanwhile. Errors: CBSHM_ERR_INVALID.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_breaker_set_stale_policy(struct cbshm_breaker *breaker,
								 enum cbshm_stale_policy policy,
								 int64_t max_stale_us);

/* What an answer rests on. */
enum cbshm_basis {
	CBSHM_BASIS_SEGMENT = 0,    /* the breaker's own decision word */
	CBSHM_BASIS_UNKNOWN = 1,    /* the segment has no such breaker: enabled */
	CBSHM_BASIS_NO_SEGMENT = 2, /* there is no segment to read: enabled */
	CBSHM_BASIS_STALE = 3 /* the handle's stale policy: there has been no news for too long */
};

/* One answer. `epoch` is the low 32 bits of the breaker's version, to be stamped on what follows from it. */
struct cbshm_decision {
	uint32_t epoch;
	uint8_t disabled;
	uint8_t basis; /* enum cbshm_basis */
	uint16_t reserved;
};

/* Everything that is not "exists and is closed": TTLs, unknown breakers, a replaced segment. */
CBSHM_PUBLIC struct cbshm_decision cbshm_check_slow(const struct cbshm_breaker *breaker);

/* cbshm_is_disabled() as a function of the shared library, for callers that cannot inline. */
CBSHM_PUBLIC bool cbshm_is_disabled_call(const struct cbshm_breaker *breaker);

/*
 * The decision and the epoch it belongs to, from one load.
 *
 * While the breaker is closed this is one acquire load and one compare: no system call, no lock,
 * no clock, no store, no errno. All functions of this section are thread-safe, fork-safe and
 * async-signal-safe, and never wait for the agent: a writer killed at any instruction leaves a
 * decision word that is either the old one or the new one.
 *
 * Ordering: the load of the word pairs with the release store in the agent's segment writer, so a
 * caller that sees a decision also sees the record that explains it.
 *
 * The order of the loads (word pointer, word, live) does not matter: a generation is handed out
 * once in a segment's life, so `live` can match no word but that of its own breaker.
 */
static inline struct cbshm_decision cbshm_check(const struct cbshm_breaker *breaker)
{
	const uint64_t *word = __atomic_load_n(&breaker->word, __ATOMIC_ACQUIRE);
	uint64_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);

	if (CBSHM_LIKELY((uint32_t)now == __atomic_load_n(&breaker->live, __ATOMIC_RELAXED))) {
		/* Bit 3 is set in the word that the handle of an unknown breaker watches, and only there. */
		struct cbshm_decision closed = {(uint32_t)(now >> 32), 0, (uint8_t)(now >> 3 & 1),
						0};
		return closed;
	}
	return cbshm_check_slow(breaker);
}

/* Must traffic stay away? True while the breaker is open and its TTL has not passed. */
static inline bool cbshm_is_disabled(const struct cbshm_breaker *breaker)
{
	const uint64_t *word = __atomic_load_n(&breaker->word, __ATOMIC_ACQUIRE);
	uint64_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);

	if (CBSHM_LIKELY((uint32_t)now == __atomic_load_n(&breaker->live, __ATOMIC_RELAXED)))
		return false;
	return cbshm_check_slow(breaker).disabled;
}

/* The same in the field's words: an open breaker is disabled, a closed one is enabled. */
static inline bool cbshm_is_open(const struct cbshm_breaker *breaker)
{
	return cbshm_is_disabled(breaker);
}

static inline bool cbshm_is_closed(const struct cbshm_breaker *breaker)
{
	return !cbshm_is_disabled(breaker);
}

/* ---- the whole record ------------------------------------------------------------------- */

/* A policy. In what the library returns every field is the one in force, the fleet's default included. */
struct cbshm_policy {
	double drift_threshold;          /* a score above it is a failure; 0 to 1 */
	uint32_t failure_threshold;      /* failures in a row that trip; >= 1 */
	uint32_t schema_error_threshold; /* schema errors in one report that trip; >= 1 */
	int64_t default_ttl_us; /* microseconds until an opening ends by itself; 0 = never */
	bool auto_recover;      /* whether a TTL that has passed closes the breaker */
};

/* cbshm_state.flags */
#define CBSHM_STATE_REASON_CUT 0x1u /* `reason` is the beginning of a longer text */
#define CBSHM_STATE_ACTOR_CUT  0x2u /* `disabled_by` is the beginning of a longer text */

struct cbshm_state {
	char name[CBSHM_NAME_MAX + 1];
	bool disabled;     /* the answer of the check at the time of the call, TTL applied */
	bool row_disabled; /* what the row says, TTL not applied */
	uint32_t flags;    /* CBSHM_STATE_* */
	uint64_t version;  /* +1 with every committed change of the row */
	int64_t opened_at; /* microseconds since the Unix epoch, database's clock; or CBSHM_NO_TIME */
	int64_t disabled_until;  /* likewise: the end of the TTL */
	int64_t last_failure_at; /* likewise: the last drift report over the threshold */
	int64_t updated_at;      /* likewise */
	int64_t remaining_us; /* until the TTL ends, on this host's clock; CBSHM_NO_TIME without one */
	uint32_t consecutive_failures;
	char incident_id[CBSHM_UUID_SIZE];       /* "" while closed */
	char disabled_by[CBSHM_ACTOR_SIZE];      /* "" while closed */
	char disabled_reason[CBSHM_REASON_SIZE]; /* "" while closed */
	struct cbshm_policy policy;              /* in force */
};

/*
 * The record as the segment has it: one consistent copy, never older than a decision that any
 * check of this process has returned before. Async-signal-safe; makes no system call but for the clock.
 *
 * Errors: CBSHM_ERR_NO_SEGMENT, CBSHM_ERR_NOT_FOUND, CBSHM_ERR_BUSY (the record changed under every
 * one of a bounded number of attempts; try again).
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_get_state(const struct cbshm_breaker *breaker,
						  struct cbshm_state *state);

/*
 * Calls `each` for every breaker of the segment, in no particular order, until it returns non-zero;
 * that value is returned, else 0. Breakers that come or go meanwhile may be seen or not; each state is consistent.
 *
 * Errors: CBSHM_ERR_NO_SEGMENT and the other values of cbshm_segment_status().
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_foreach(
	struct cbshm *client, int (*each)(const struct cbshm_state *state, void *arg), void *arg);

/* An agent whose event loop has stood still for so long hangs. */
#define CBSHM_HUNG_AFTER_US INT64_C(5000000)

/*
 * How much the mirror can be trusted at this moment: is the agent dead, does it hang, is it cut off from the
 * database? Ages are microseconds; CBSHM_NO_TIME = never, or nobody can say.
 */
struct cbshm_health {
	bool agent_alive;   /* the kernel knows the agent's process as the owner of the segment */
	bool agent_hung;    /* it lives, but heartbeat_age_us is above CBSHM_HUNG_AFTER_US */
	bool database_live; /* it does not hang, is connected, and its mirror is complete */
	bool restored; /* from a snapshot of before the segment was made; the database has not confirmed it yet */
	int64_t heartbeat_age_us; /* since the agent's event loop last turned; about 1 s is normal */
	int64_t database_age_us;  /* since the database last confirmed the mirror */
	uint64_t boot_epoch;      /* +1 with every start of the agent on this segment */
	uint32_t breakers;        /* number of breakers in the segment */
	uint32_t capacity;        /* how many fit */
	int64_t clock_offset_us; /* database's clock minus this host's wall clock, as last measured */
};

/*
 * Errors: those of cbshm_segment_status(). If the agent is dead, this also looks whether another agent has made
 * another segment since, which nobody else would find while all is closed; so call it, or cbshm_wait(), now and then.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_health(struct cbshm *client, struct cbshm_health *health);

/* ---- waiting ---------------------------------------------------------------------------- */

/*
 * Sleeps until something has changed since the caller last looked: any of `count` breakers of this
 * client, or (`breakers` NULL, `count` 0) any breaker of the segment, those that come and go
 * included.
 *
 * `seen` says what the caller knows: one token for each breaker, or a single one for all. Begin
 * with zeros, which makes the first call return at once; each call that returns 0 has brought them
 * up to date, and what is read after it is at least as new as the tokens. So no change is missed
 * between two calls, though several may have become one:
 *
 *	uint64_t seen = 0;
 *	while (cbshm_wait(client, &breaker, 1, &seen, -1) == 0)
 *		show(cbshm_check(breaker));
 *
 * A breaker changes with its row (its version), when it is deleted or created, and when its TTL
 * ends. What is waited for also changes when the agent dies, hangs or comes back, and when the
 * database is lost or found: see cbshm_health(). Now and then the call returns without a reason
 * that shows. A change in Postgres ends the sleep at once; what nobody announces (a killed agent,
 * the end of a TTL meanwhile, a segment that comes) within about a second.
 *
 * `timeout_ms`: -1 = for ever, 0 = only looks. Needs neither lock nor descriptor; any number of threads and
 * processes may wait for the same breaker, each with tokens of its own.
 *
 * Errors: CBSHM_ERR_INVALID, CBSHM_ERR_TIMEOUT (nothing has changed), CBSHM_ERR_SYSTEM (errno EINTR: a signal handler
 * has run).
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_wait(struct cbshm *client,
					     struct cbshm_breaker *const *breakers, size_t count,
					     uint64_t *seen, int timeout_ms);

/* ---- subscriptions ---------------------------------------------------------------------- */

/*
 * What cbshm_wait() is for threads, for event loops: a descriptor that poll(2) and its like can
 * wait for, and events.
 */
struct cbshm_subscription;

enum cbshm_event_kind {
	CBSHM_EVENT_STATE = 1,    /* `state`: a breaker as it is now */
	CBSHM_EVENT_UNKNOWN = 2,  /* `state.name`: there is no such breaker, or no longer */
	CBSHM_EVENT_COMPLETE = 3, /* all that there was at the beginning has been told */
	CBSHM_EVENT_LOST = 4 /* no connection to the agent, see `error`: it is made by itself */
};

struct cbshm_event {
	enum cbshm_event_kind kind;
	int error;         /* CBSHM_EVENT_LOST: why */
	char message[512]; /* CBSHM_EVENT_LOST: the same in words, and what to do */
	struct cbshm_state state;
};

/*
 * Subscribes to `count` breakers (1 to 1000), or to all (`names` NULL, `count` 0). Returns at once:
 * the connection is made by cbshm_subscription_next(), and that there is no agent is no error.
 *
 * The first events tell all breakers as they are (of those of `names` that do not exist,
 * CBSHM_EVENT_UNKNOWN), then comes CBSHM_EVENT_COMPLETE, then what changes: each time the newest
 * state, once, however often it has changed since the last. When the connection is lost,
 * CBSHM_EVENT_LOST tells that once; it is made again, after pauses of 0.1 to 5 s, and all of this
 * begins anew, since nobody knows what was missed: what is not told between CBSHM_EVENT_LOST and
 * CBSHM_EVENT_COMPLETE does not exist any more.
 *
 * A subscription belongs to one thread at a time and to the process that made it, and is closed
 * before its client. Errors: CBSHM_ERR_INVALID, CBSHM_ERR_MEMORY, CBSHM_ERR_SYSTEM.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_subscribe(struct cbshm *client, const char *const *names,
						  size_t count,
						  struct cbshm_subscription **subscription);

/* To be waited for, until it can be read; nothing else. It stays the same, and is the library's to close. */
CBSHM_PUBLIC int cbshm_subscription_fd(const struct cbshm_subscription *subscription);

/*
 * The next event. `timeout_ms`: how long to wait for one; 0 = not at all, as in an event loop,
 * which calls this until there is none; -1 = for ever. Errors: CBSHM_ERR_TIMEOUT (there is none),
 * CBSHM_ERR_INVALID, CBSHM_ERR_SYSTEM (errno EINTR: a signal handler has run).
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_subscription_next(struct cbshm_subscription *subscription,
							  int timeout_ms,
							  struct cbshm_event *event);

/* NULL is fine. */
CBSHM_PUBLIC void cbshm_subscription_close(struct cbshm_subscription *subscription);

/* ---- writes ----------------------------------------------------------------------------- */

/*
 * Any thread may write at any time: all share one connection, on which calls do not wait for each
 * other's answers (or up to four, while somebody's locked row holds up the answers on one), and
 * each keeps its own deadline (on CLOCK_MONOTONIC; signals do not shorten or lengthen it). No
 * SIGPIPE is raised. The child of a fork() may go on at once, also if another thread of the parent
 * was in the middle of a write: it connects by itself.
 */

/*
 * How a write is to be done, and what happened in words. NULL stands for the defaults. The call
 * belongs to one thread at a time.
 */
struct cbshm_call {
	int timeout_ms; /* in: the deadline, 1 to 3600000 ms from now; 0 = CBSHM_DEFAULT_TIMEOUT_MS */
	char message[512]; /* out: after an error, what is wrong and what to do; else "" */
};

struct cbshm_incident {
	char id[CBSHM_UUID_SIZE];
	char breaker[CBSHM_NAME_MAX + 1];
	int64_t timestamp; /* microseconds since the Unix epoch, database's clock */
	char *reason;
	char severity[3];     /* "P1", "P2", "P3" */
	double drift_score;   /* NAN if none */
	int64_t sample_count; /* -1 if none */
	char *details;        /* a JSON object, or NULL */
	bool resolved;
	int64_t resolved_at;    /* or CBSHM_NO_TIME */
	char *resolved_by;      /* or NULL */
	char *resolution_notes; /* or NULL */
	bool alert_sent;
	int64_t alert_sent_at; /* or CBSHM_NO_TIME */
};

/*
 * What the write functions return beside their own:
 * CBSHM_ERR_INVALID, CBSHM_ERR_DENIED, CBSHM_ERR_AGENT_DOWN, CBSHM_ERR_DATABASE_DOWN, CBSHM_ERR_BUSY (row locked by
 * somebody else until the deadline), CBSHM_ERR_REFUSED, CBSHM_ERR_PROTOCOL, CBSHM_ERR_TIMEOUT (nothing was applied),
 * CBSHM_ERR_UNKNOWN (the answer is lost; it may have been applied; a disable or enable may simply be repeated),
 * CBSHM_ERR_MEMORY, CBSHM_ERR_SYSTEM.
 */

/*
 * Reports one observation that a guarded path disagrees with its reference: `score` in [0, 1],
 * from `samples` >= 1 samples, with `details`, a JSON object or NULL. `tripped` (may be NULL) becomes
 * the id of the incident if this very report opened the breaker, else "".
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_report_drift(struct cbshm *client, const char *name,
						     double score, int64_t samples,
						     const char *details, struct cbshm_call *call,
						     char tripped[CBSHM_UUID_SIZE]);

/* Reports `count` >= 0 schema errors at once; otherwise as cbshm_report_drift(). */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_report_schema_error(struct cbshm *client, const char *name,
							    int64_t count, const char *details,
							    struct cbshm_call *call,
							    char tripped[CBSHM_UUID_SIZE]);

/* ---- reports that nobody waits for -------------------------------------------------------- */

/*
 * cbshm_report_drift() and cbshm_report_schema_error() for places that must not wait: the report is
 * checked and copied into a buffer, which takes a fraction of a microsecond, no lock, and, unless
 * it is the first or has `details`, no memory from malloc(3). Any thread.
 *
 * Who sends it: if cbshm_fd() has been called, the program's event loop, and the call itself does
 * at most wake that. Otherwise these calls themselves (and every other write) send what the socket
 * takes at once, and now and then read the answers; so what was reported last may stay in the
 * buffer until the next call, or cbshm_flush(). A report waits for the database for at most
 * CBSHM_DEFAULT_TIMEOUT_MS. It is sent once: one whose answer is lost with a connection is counted
 * as unknown, and never repeated. While no agent can be reached, reports stay in the buffer, and a
 * connection is tried after 50 ms, doubled up to 5 s. Reports of one thread are applied in their
 * order; between them and its other writes there is none, but for cbshm_flush().
 *
 * Errors: CBSHM_ERR_INVALID, CBSHM_ERR_FULL (the report is dropped, and counted), CBSHM_ERR_MEMORY.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_report_drift_async(struct cbshm *client, const char *name,
							   double score, int64_t samples,
							   const char *details);
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_report_schema_error_async(struct cbshm *client,
								  const char *name, int64_t count,
								  const char *details);

/*
 * Waits until everything that was queued before the call has been answered. `failed` (may be NULL):
 * how many reports have failed or become unknown since the last cbshm_flush(), which is said once.
 * Any thread, the event loop's too.
 *
 * Errors: CBSHM_ERR_TIMEOUT (some are not answered, and stay queued; `failed` is set),
 * CBSHM_ERR_INVALID, CBSHM_ERR_MEMORY.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_flush(struct cbshm *client, struct cbshm_call *call,
					      uint64_t *failed);

/*
 * Since cbshm_open(), in this process: queued = acknowledged + failed + unknown + pending. What was
 * dropped was never queued.
 */
struct cbshm_report_stats {
	size_t size;      /* in: sizeof(struct cbshm_report_stats), so that fields can be added */
	uint64_t queued;  /* put into the buffer */
	uint64_t dropped; /* CBSHM_ERR_FULL */
	uint64_t sent;    /* to the agent, to the last byte */
	uint64_t acknowledged; /* committed in Postgres */
	uint64_t failed;       /* the agent said that it was not applied */
	uint64_t unknown;      /* whether it was applied cannot be known */
	uint64_t pending;      /* in the buffer, or not answered yet */
	int last_error;        /* the last CBSHM_ERR_* of a report or a connection; 0 = none ever */
};

/* Does not wait; any thread. Errors: CBSHM_ERR_INVALID, CBSHM_ERR_MEMORY. */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_get_report_stats(struct cbshm *client,
							 struct cbshm_report_stats *stats);

/*
 * For event loops: a descriptor that is readable (POLLIN, level-triggered) whenever
 * cbshm_dispatch() has something to do: reports to send, answers to take, a connection to make. It
 * stays the same until cbshm_close(), which closes it; it is to be watched and nothing else. In the
 * child of a fork(), cbshm_fd() returns another one. From the first call on, sending reports is up
 * to the loop.
 *
 * Returns it, or an error: CBSHM_ERR_INVALID, CBSHM_ERR_MEMORY, CBSHM_ERR_SYSTEM.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_fd(struct cbshm *client);

/*
 * Does what there is to do, and does not wait. Also for programs without a loop, from time to time.
 * Any thread. Returns 0, or why reports cannot be sent at the moment, which passes by itself or
 * not: it is tried again.
 */
CBSHM_PUBLIC int cbshm_dispatch(struct cbshm *client);

/* ---- decisions ---------------------------------------------------------------------------- */

/* For `until` of cbshm_disable(): the policy's default TTL, and no TTL at all. */
#define CBSHM_UNTIL_DEFAULT 0
#define CBSHM_UNTIL_NEVER   INT64_MAX

/*
 * Opens the breaker by hand. `by` NULL: the caller's user name as the agent sees it. `until`:
 * microseconds since the Unix epoch on the database's clock, or one of the two above. `for_us`: instead of
 * `until`, that many microseconds from the moment the database applies it; 0 = not given.
 * `changed` (may be NULL): false if the breaker was already open with the same reason and the same
 * end. `incident` (may be NULL): the new incident's id, or "".
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_disable(struct cbshm *client, const char *name,
						const char *reason, const char *by, int64_t until,
						int64_t for_us, struct cbshm_call *call,
						bool *changed, char incident[CBSHM_UUID_SIZE]);

/* Closes the breaker by hand. `by` as above; `reason` NULL: "Manual reset". */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_enable(struct cbshm *client, const char *name,
					       const char *by, const char *reason,
					       struct cbshm_call *call, bool *changed);

/* Another name for cbshm_enable(). */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_reset(struct cbshm *client, const char *name,
					      const char *by, const char *reason,
					      struct cbshm_call *call, bool *changed);

/*
 * Incidents, newest first: of one breaker, or of all (`name` NULL); at most `limit` (1 to 1000; 0 = 10).
 * `incidents` becomes an array of `count` elements to be freed with cbshm_incidents_free(), or NULL.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_get_incidents(struct cbshm *client, const char *name,
						      bool include_resolved, uint32_t limit,
						      struct cbshm_call *call,
						      struct cbshm_incident **incidents,
						      size_t *count);
CBSHM_PUBLIC void cbshm_incidents_free(struct cbshm_incident *incidents, size_t count);

/*
 * The row as the database has it at this moment (cbshm_get_state() reads the mirror): together with the
 * writes, linearizable per breaker. Errors: also CBSHM_ERR_NOT_FOUND.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_fetch_state(struct cbshm *client, const char *name,
						    struct cbshm_call *call,
						    struct cbshm_state *state);

/* An agent, as the others know it. */
struct cbshm_agent {
	char *host;
	char *instance;       /* what tells agents of one host apart; the host if not configured */
	char *version;        /* of cbagent */
	int64_t last_seen_at; /* microseconds since the Unix epoch, database's clock */
};

/* How far the agents are. The lists name at most 50 each; who was not seen for a day is forgotten. */
struct cbshm_fleet {
	uint32_t hosts;    /* agents that are alive: seen within the last 10 s */
	uint32_t in_force; /* of them, those whose segments have everything */
	double slowest_ms; /* from the question to the last of their answers; NAN if there is none */
	struct cbshm_agent *behind; /* alive, and not there yet */
	size_t behind_count;
	struct cbshm_agent *silent; /* not alive, and did not stop in order: not waited for */
	size_t silent_count;
};

/*
 * Waits until every agent that is alive has in its segment what was committed before the call:
 * after a cbshm_disable(), until no such host lets traffic pass any more. An agent that dies
 * meanwhile is silent after 10 s; engines on such a host, if it runs, may still go by an earlier
 * state. Returns at the deadline of `call` (default 5 s: give more than those 10 s) with
 * CBSHM_ERR_BEHIND if some are behind, or if none is seen alive; `fleet` is filled then, too. It is
 * to be freed with cbshm_fleet_free() in any case.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_wait_fleet(struct cbshm *client, struct cbshm_call *call,
						   struct cbshm_fleet *fleet);
CBSHM_PUBLIC void cbshm_fleet_free(struct cbshm_fleet *fleet);

/*
 * Any method of io.cbshm(7), for those that have no function here: `method` such as "GetLog",
 * `parameters` a JSON object without timeout_ms, or NULL. `reply` becomes the parameters of the
 * reply as JSON, to be freed with free(3), or NULL. The outcome of a lost answer is unknown
 * (CBSHM_ERR_UNKNOWN) unless the method's name begins with Get. CBSHM_ERR_INVALID: also if the agent
 * has no such method, or it is Subscribe.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_call_json(struct cbshm *client, const char *method,
						  const char *parameters, struct cbshm_call *call,
						  char **reply);

/* Which fields of a policy to change, and which to give back to the fleet's default. */
#define CBSHM_POLICY_DRIFT_THRESHOLD        0x01u
#define CBSHM_POLICY_FAILURE_THRESHOLD      0x02u
#define CBSHM_POLICY_SCHEMA_ERROR_THRESHOLD 0x04u
#define CBSHM_POLICY_DEFAULT_TTL            0x08u
#define CBSHM_POLICY_AUTO_RECOVER           0x10u

/*
 * Changes a breaker's policy (creating the breaker if need be), or the fleet's defaults (`name`
 * NULL). `set` names the fields taken from `policy`, `clear` those that follow the fleet's default
 * again (not for the fleet itself). Both 0: only reads. `result` (may be NULL): the policy now in
 * force. Errors: also CBSHM_ERR_NOT_FOUND when only reading.
 */
CBSHM_PUBLIC CBSHM_MUST_CHECK int cbshm_set_policy(struct cbshm *client, const char *name,
						   const struct cbshm_policy *policy, uint32_t set,
						   uint32_t clear, const char *by,
						   struct cbshm_call *call,
						   struct cbshm_policy *result);

#ifdef __cplusplus
}
#endif

#endif /* CBSHM_H */
