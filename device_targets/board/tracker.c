/* Messages are those of tvm/rpc/tracker.py: JSON behind its length, each answered. */
#define _GNU_SOURCE
#include "tracker.h"

#include <netdb.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "bytes.h"

enum {
    MAGIC = 0x2f271,
    PUT = 3,
    UPDATE_INFO = 5,
    PENDING_KEYS = 7,
    ANSWER_S = 5,
    RETRY_S = 5,  /* between two attempts, in which nobody else is heard for up to three times ANSWER_S */
    UNUSED_S = 6, /* a match key that was handed out and nobody came with for so long is replaced */
    MAX_ANSWER = 1 << 20,
};

static bool ask(const Tracker *tracker, char *answer, size_t room, const char *question) {
    int32_t size = (int32_t)strlen(question);
    if (!send_all(tracker->connection, &size, sizeof size)) return false;
    if (!send_all(tracker->connection, question, (size_t)size)) return false;
    double until = seconds() + ANSWER_S;
    if (!receive(tracker->connection, &size, sizeof size, until) || size < 0 || (size_t)size >= room) return false;
    if (!receive(tracker->connection, answer, (size_t)size, until)) return false;
    answer[size] = 0;
    return true;
}

static bool tell(const Tracker *tracker, const char *format, ...) __attribute__((format(printf, 2, 3)));

static bool tell(const Tracker *tracker, const char *format, ...) {
    char message[512], answer[16];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return ask(tracker, answer, sizeof answer, message) && strcmp(answer, "0") == 0;
}

/* Under a match key that nobody can guess. */
static bool offer(Tracker *tracker) {
    uint64_t drawn;
    if (getrandom(&drawn, sizeof drawn, 0) != sizeof drawn) return false;
    snprintf(tracker->match_key, MATCH_KEY, "%s:%016llx", tracker->key, (unsigned long long)drawn);
    tracker->offered = true;
    tracker->pending_at = seconds();
    return tell(tracker, "[%d, \"%s\", [%d, \"%s\"], null]", PUT, tracker->key, tracker->port, tracker->match_key);
}

static bool is_there(Tracker *tracker, bool in_session, bool after_session) {
    static char pending[MAX_ANSWER];
    char question[16];
    if (in_session || after_session) tracker->offered = false; /* the client used the match key */
    if (!in_session && !tracker->offered) return offer(tracker);
    snprintf(question, sizeof question, "[%d]", PENDING_KEYS);
    if (!ask(tracker, pending, sizeof pending, question)) return false;
    if (in_session || strstr(pending, tracker->match_key) != NULL) tracker->pending_at = seconds();
    return seconds() - tracker->pending_at < UNUSED_S || offer(tracker);
}

static bool greeted_by(int connection, const struct addrinfo *there) {
    struct timeval patience = {ANSWER_S, 0};
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience); /* also of connect */
    keep_alive(connection);
    int32_t magic = MAGIC;
    return connect(connection, there->ai_addr, there->ai_addrlen) == 0 && send_all(connection, &magic, sizeof magic) &&
           receive(connection, &magic, sizeof magic, seconds() + ANSWER_S) && magic == MAGIC;
}

static bool connected(Tracker *tracker) {
    char address[256], port[16];
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM}, *found;
    if (!split(tracker->address, address, sizeof address, port, sizeof port)) return false;
    if (getaddrinfo(address, port, &wanted, &found) != 0) return false;
    bool greeted = false;
    for (const struct addrinfo *one = found; one != NULL && !greeted; one = one->ai_next) {
        if (tracker->connection >= 0) close(tracker->connection);
        tracker->connection = socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        greeted = greeted_by(tracker->connection, one);
    }
    freeaddrinfo(found);
    tracker->offered = false;
    static const char info[] = "[%d, {\"key\": \"server:%s\", \"addr\": [null, %d]}]";
    return greeted && tell(tracker, info, UPDATE_INFO, tracker->key, tracker->port);
}

void keep_registered(Tracker *tracker, bool in_session, bool after_session) {
    if (tracker->connection < 0 && seconds() < tracker->next_try_at) return;
    tracker->next_try_at = seconds() + RETRY_S;
    bool begins = tracker->connection < 0;
    if ((!begins || connected(tracker)) && is_there(tracker, in_session, after_session)) {
        if (begins) fprintf(stderr, "adapt-agent: registered as %s at %s\n", tracker->key, tracker->address);
        tracker->missed = false;
        return;
    }
    if (!tracker->missed) fprintf(stderr, "adapt-agent: no tracker answers at %s; trying again\n", tracker->address);
    tracker->missed = true;
    if (tracker->connection >= 0) close(tracker->connection);
    tracker->connection = -1;
}
