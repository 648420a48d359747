/* Keep a board registered with a tracker of TVM's, which hands it out to one client after the other. */
#ifndef ADAPT_BOARD_TRACKER_H
#define ADAPT_BOARD_TRACKER_H

#include <stdbool.h>

enum { MAX_KEY = 100, MATCH_KEY = MAX_KEY + 32 };

typedef struct {
    const char *address;       /* ADDRESS:PORT */
    const char *key;           /* what clients ask the tracker for */
    int port;                  /* where the board listens */
    char match_key[MATCH_KEY]; /* what the next client says: drawn anew for each, told by the tracker to one */
    int connection;            /* -1 while there is none */
    bool offered;
    double pending_at; /* when the match key was last seen waiting for a client */
    double next_try_at;
    bool missed; /* it was told that the tracker is away */
} Tracker;

/* Call every few seconds, and at once when a session has ended. Offers the board when it is free, again when a client
 * took the match key and did not come, and registers again after the tracker was away. */
void keep_registered(Tracker *tracker, bool in_session, bool after_session);

#endif
