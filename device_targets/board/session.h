/* One session of TVM's RPC, served by the calling process. */
#ifndef ADAPT_BOARD_SESSION_H
#define ADAPT_BOARD_SESSION_H

/* Offer what a client may call. Fails, with a line on standard error, where TVM's runtime lacks something. */
int offer_functions(void);

/* Serve a connected socket until the client is gone; 0 when it left in order. The working directory is the session's:
 * libraries are written there and loaded from there. That guards against accidents, not against a client: it runs code. */
int serve_socket(int connection);

#endif
