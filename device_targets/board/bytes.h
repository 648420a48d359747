/* Bytes over a socket, in bounded time. */
#ifndef ADAPT_BOARD_BYTES_H
#define ADAPT_BOARD_BYTES_H

#include <stdbool.h>
#include <stddef.h>

/* Seconds of a clock that never goes back. */
double seconds(void);

/* Read exactly so many bytes until that time; false where they do not come. */
bool receive(int from, void *into, size_t size, double until);

bool send_all(int to, const void *bytes, size_t size);

/* Notice a peer that is gone without a word, such as one whose cable was pulled, within half a minute. */
void keep_alive(int connection);

/* Split ADDRESS:PORT, of which the address may be in brackets. */
bool split(const char *text, char *address, size_t room, char *port, size_t port_room);

#endif
