#define _GNU_SOURCE
#include "bytes.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

double seconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

bool receive(int from, void *into, size_t size, double until) {
    for (char *next = into; size > 0;) {
        struct pollfd waiting = {from, POLLIN, 0};
        double left = until - seconds();
        if (left <= 0 || poll(&waiting, 1, (int)(1000 * left) + 1) <= 0) return false;
        ssize_t got = recv(from, next, size, 0);
        if (got <= 0) return false;
        next += got;
        size -= (size_t)got;
    }
    return true;
}

bool send_all(int to, const void *bytes, size_t size) {
    for (const char *next = bytes; size > 0;) {
        ssize_t sent = send(to, next, size, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        next += sent;
        size -= (size_t)sent;
    }
    return true;
}

void keep_alive(int connection) {
    int yes = 1, idle = 10, interval = 5, probes = 3;
    unsigned unanswered_ms = 25000; /* of what was sent: then no probes are */
    setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(connection, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(connection, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

bool split(const char *text, char *address, size_t room, char *port, size_t port_room) {
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;
    if (length > 1 && text[0] == '[' && text[length - 1] == ']') {
        text++;
        length -= 2;
    }
    if (length == 0 || length >= room || strlen(colon + 1) == 0 || strlen(colon + 1) >= port_room) return false;
    memcpy(address, text, length);
    address[length] = 0;
    strcpy(port, colon + 1);
    return true;
}
