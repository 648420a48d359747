/* What runs on a board: serves TVM's RPC, one session at a time, each in a process and a folder of its own.
 *
 *     agent --key KEY [--listen ADDRESS:PORT] [--tracker ADDRESS:PORT] [--session-timeout SECONDS] [--work FOLDER]
 *           [--with-parent PID]
 *
 * A kernel that crashes takes its session with it and nothing else, and one that never ends ends with its client. Who
 * connects has three seconds to say the key. Without --listen only this machine is served, at any free port, which is
 * printed. Greetings are those of tvm/rpc/server.py; what is not a greeting is never answered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <glob.h>
#include <limits.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "session.h"
#include "tracker.h"

enum {
    MAGIC = 0xff271,
    ACCEPTED = MAGIC,
    BUSY = MAGIC + 1, /* TVM's "duplicate": there is a server of that key, and it is taken */
    MISMATCH = MAGIC + 2,

    GREETING_S = 3,
    TICK_S = 2,
    MAX_GREETING = 1000,
    MAX_PEERS = 8,
    LONGEST_S = 1000000,
};

static const char SESSION_LOCK[] = "session.lock", AGENT_LOCK[] = "agent.lock";
static const int SIGNALS[] = {SIGCHLD, SIGTERM, SIGINT};

static unsigned session_s; /* 0: without end */
static int agent_lock;
static Tracker tracker = {.connection = -1};
static volatile sig_atomic_t ending;

static void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("adapt-agent: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static int failed(const char *what) {
    say("%s: %s", what, strerror(errno));
    return 1;
}

/* A lock is the kernel's: it ends with the last process that has its file, however that ends, and others can ask for it
 * without taking it. */

static int ask_lock(const char *name, int command, struct flock *lock) {
    int file = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    *lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    if (file >= 0 && fcntl(file, command, lock) == 0) return file;
    if (file >= 0) close(file);
    return -1;
}

/* The file that holds the lock, or -1 where another process has it. */
static int take_lock(const char *name) {
    struct flock lock;
    return ask_lock(name, F_OFD_SETLK, &lock);
}

static bool in_session(void) {
    struct flock lock;
    int file = ask_lock(SESSION_LOCK, F_OFD_GETLK, &lock);
    if (file >= 0) close(file);
    return file < 0 || lock.l_type != F_UNLCK;
}

/* A session, in a child */

typedef char Folder[32];

static void name_folder(Folder folder, pid_t child) { snprintf(folder, sizeof(Folder), "session-%d", (int)child); }

/* Read "client:KEY [options]" and answer; the seconds that the client wants at most, or -1 where it is sent away. */
static double greeted(int connection) {
    double until = seconds() + GREETING_S;
    int32_t magic, size, code = ACCEPTED;
    char said[MAX_GREETING + 1], wanted[MATCH_KEY + 8], own[MAX_KEY + 8];
    if (!receive(connection, &magic, sizeof magic, until) || magic != MAGIC) return -1;
    if (!receive(connection, &size, sizeof size, until) || size < 0 || size > MAX_GREETING) return -1;
    if (!receive(connection, said, (size_t)size, until)) return -1;
    said[size] = 0;
    char *rest = NULL, *key = strtok_r(said, " ", &rest);
    snprintf(wanted, sizeof wanted, "client:%s", tracker.match_key);
    if (key == NULL || strcmp(key, wanted) != 0)
        code = MISMATCH;
    else if (take_lock(SESSION_LOCK) < 0) /* held until this process ends */
        code = BUSY;
    if (!send_all(connection, &code, sizeof code) || code != ACCEPTED) return -1;
    int32_t length = snprintf(own, sizeof own, "server:%s", tracker.key);
    if (!send_all(connection, &length, sizeof length) || !send_all(connection, own, (size_t)length)) return -1;
    double allowed = 0;
    for (char *option; (option = strtok_r(NULL, " ", &rest)) != NULL;)
        if (strncmp(option, "-timeout=", 9) == 0) allowed = strtod(option + 9, NULL);
    return allowed > LONGEST_S ? LONGEST_S : allowed > 0 ? allowed : 0;
}

/* Where memory ends, let the kernel end the session and not the agent. */
static void die_first(void) {
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file < 0) return;
    if (write(file, "1000", 4) != 4) say("no memory may end the agent, too");
    close(file);
}

static void serve(int connection) {
    double allowed = greeted(connection);
    Folder folder;
    name_folder(folder, getpid());
    if (allowed < 0) _exit(0);
    if (mkdir(folder, 0700) != 0 || chdir(folder) != 0) _exit(failed(folder));
    die_first();
    if (session_s > 0 && (allowed == 0 || allowed > session_s)) allowed = session_s;
    if (allowed > 0) alarm(allowed < 1 ? 1 : (unsigned)allowed); /* unanswered, it ends this process */
    keep_alive(connection);
    _exit(offer_functions() != 0 || serve_socket(connection) != 0);
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static void remove_folder(const char *folder) { nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS); }

/* What an agent left that was ended in the middle: folders named as ours are, and nothing else. */
static void remove_old_sessions(void) {
    glob_t found;
    if (glob("session-[0-9]*", 0, NULL, &found) != 0) return;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        const char *name = found.gl_pathv[i];
        struct stat status;
        bool ours = name[strlen("session-") + strspn(name + strlen("session-"), "0123456789")] == 0;
        if (ours && lstat(name, &status) == 0 && S_ISDIR(status.st_mode)) remove_folder(name);
    }
    globfree(&found);
}

/* Who is connected, each with a child */

typedef struct {
    pid_t child; /* 0: nobody */
    int connection;
    bool left; /* the peer is gone; the child has until the next look to notice it */
} Peer;

static Peer peers[MAX_PEERS];

/* End when that process ends, and at once if it has. */
static void die_with(pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
}

static void accept_one(int listener) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0) return;
    Peer *peer = peers;
    while (peer < peers + MAX_PEERS && peer->child != 0) peer++;
    pid_t agent = getpid(), child = peer < peers + MAX_PEERS ? fork() : -1;
    if (child == 0) {
        die_with(agent);
        setpgid(0, 0); /* whatever it starts ends with it */
        signal(SIGPIPE, SIG_IGN);
        sigset_t none;
        sigemptyset(&none);
        for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) signal(SIGNALS[i], SIG_DFL);
        sigprocmask(SIG_SETMASK, &none, NULL);
        close(listener);
        close(agent_lock);
        if (tracker.connection >= 0) close(tracker.connection);
        for (Peer *other = peers; other < peers + MAX_PEERS; other++)
            if (other->child != 0) close(other->connection);
        serve(connection);
    }
    if (child > 0) {
        setpgid(child, child); /* whoever of both comes first */
        *peer = (Peer){child, connection, false};
    } else {
        close(connection);
    }
}

/* Clear up after a child that ended; whether it had a session. */
static bool cleared(pid_t child, int status) {
    for (Peer *peer = peers; peer < peers + MAX_PEERS; peer++) {
        if (peer->child != child) continue;
        close(peer->connection);
        peer->child = 0;
    }
    kill(-child, SIGKILL);
    Folder folder;
    struct stat found;
    name_folder(folder, child);
    if (stat(folder, &found) != 0) return false; /* it was sent away */
    remove_folder(folder);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        say("session %d ended: its time was over", (int)child);
    else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        say("session %d was ended: its client left, or memory was short", (int)child);
    else if (WIFSIGNALED(status))
        say("session %d crashed: %s", (int)child, strsignal(WTERMSIG(status)));
    else
        say("session %d ended%s", (int)child, WEXITSTATUS(status) ? " badly" : "");
    return true;
}

/* End the children of peers that left and were not missed: they compute, without end perhaps. */
static void end_the_left(void) {
    for (Peer *peer = peers; peer < peers + MAX_PEERS; peer++)
        if (peer->child != 0 && peer->left) kill(-peer->child, SIGKILL);
}

/* The loop */

static int listen_at(const char *address, const char *port) {
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST}, *found;
    int yes = 1, wrong = getaddrinfo(address, port, &wanted, &found);
    if (wrong != 0) {
        say("--listen %s:%s: %s", address, port, gai_strerror(wrong));
        return -1;
    }
    int listener = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    bool bound = bind(listener, found->ai_addr, found->ai_addrlen) == 0 && listen(listener, MAX_PEERS) == 0;
    freeaddrinfo(found);
    if (!bound) {
        failed("listening");
        return -1;
    }
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } own;
    socklen_t size = sizeof own;
    getsockname(listener, &own.any, &size);
    tracker.port = ntohs(own.any.sa_family == AF_INET6 ? own.v6.sin6_port : own.v4.sin_port);
    return listener;
}

static void on_signal(int number) {
    if (number != SIGCHLD) ending = 1;
}

/* They come in ppoll alone, so none is missed. */
static void hold_signals(void) {
    sigset_t held;
    sigemptyset(&held);
    struct sigaction action = {.sa_handler = on_signal};
    for (size_t i = 0; i < sizeof SIGNALS / sizeof *SIGNALS; i++) {
        sigaddset(&held, SIGNALS[i]);
        sigaction(SIGNALS[i], &action, NULL);
    }
    sigprocmask(SIG_BLOCK, &held, NULL);
}

/* Wait until something happens; whether somebody connected. Notes which peers left. */
static bool waited(int listener) {
    struct pollfd files[MAX_PEERS + 1] = {{listener, POLLIN, 0}};
    for (int i = 0; i < MAX_PEERS; i++)
        files[i + 1] = (struct pollfd){peers[i].child == 0 || peers[i].left ? -1 : peers[i].connection, POLLRDHUP, 0};
    struct timespec tick = {TICK_S, 0};
    sigset_t none;
    sigemptyset(&none);
    if (ppoll(files, MAX_PEERS + 1, &tick, &none) <= 0) return false;
    for (int i = 0; i < MAX_PEERS; i++) peers[i].left = peers[i].left || files[i + 1].revents != 0;
    return (files[0].revents & POLLIN) != 0;
}

static void run(int listener) {
    for (double looked_at = seconds(); !ending;) {
        if (tracker.address != NULL && tracker.connection < 0) keep_registered(&tracker, in_session(), false);
        if (waited(listener)) accept_one(listener);
        bool after_session = false;
        int status;
        for (pid_t child; (child = waitpid(-1, &status, WNOHANG)) > 0;)
            after_session = cleared(child, status) || after_session;
        bool ticked = seconds() - looked_at >= TICK_S, registered = tracker.connection >= 0;
        if (ticked) end_the_left();
        if (registered && (ticked || after_session)) keep_registered(&tracker, in_session(), after_session);
        if (ticked) looked_at = seconds();
    }
}

/* A whole number from 1 to a limit; 0 for anything else. */
static unsigned number(const char *text, long limit) {
    char *end = NULL;
    long value = strtol(text, &end, 10);
    return *text == 0 || *end != 0 || value < 1 || value > limit ? 0 : (unsigned)value;
}

static bool is_plain(const char *key) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    return key[0] != 0 && strlen(key) <= MAX_KEY && key[strspn(key, letters)] == 0;
}

static bool is_loopback(const char *address) {
    return strncmp(address, "127.", 4) == 0 || strcmp(address, "::1") == 0 || strcmp(address, "localhost") == 0;
}

static int usage(const char *wrong) {
    if (wrong != NULL) say("%s", wrong);
    fputs("usage: agent --key KEY [--listen ADDRESS:PORT] [--tracker ADDRESS:PORT]\n"
          "             [--session-timeout SECONDS] [--work FOLDER] [--with-parent PID]\n\n"
          "  --key              what clients ask for: letters, digits and . _ -; or else in ADAPT_AGENT_KEY,\n"
          "                     where nobody else on this machine can read it\n"
          "  --listen           127.0.0.1 at any free port if not said: nobody but this machine is served.\n"
          "                     Whoever reaches another address can run code here: use it on networks you trust\n"
          "  --tracker          where to register; try again as long as it is away\n"
          "  --session-timeout  end a session that lasts longer\n"
          "  --work             folder for what clients send; adapt-work here if not said\n"
          "  --with-parent      end when the process PID ends, which started this one\n",
          wrong ? stderr : stdout);
    return wrong ? 2 : 0;
}

int main(int count, char **arguments) {
    enum { KEY = 'k', LISTEN = 'l', TRACKER = 't', SESSION = 's', WORK = 'w', WITH_PARENT = 'p', HELP = 'h' };
    static const struct option known[] = {
        {"key", required_argument, NULL, KEY},         {"listen", required_argument, NULL, LISTEN},
        {"tracker", required_argument, NULL, TRACKER}, {"session-timeout", required_argument, NULL, SESSION},
        {"work", required_argument, NULL, WORK},       {"with-parent", required_argument, NULL, WITH_PARENT},
        {"help", no_argument, NULL, HELP},             {NULL, 0, NULL, 0},
    };
    char address[64] = "127.0.0.1", port[16] = "0", other[256], other_port[16];
    const char *work = "adapt-work";
    pid_t parent = 0;
    tracker.key = getenv("ADAPT_AGENT_KEY");
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) {
        switch (option) {
        case KEY:
            tracker.key = optarg;
            break;
        case LISTEN:
            if (!split(optarg, address, sizeof address, port, sizeof port)) return usage("--listen: ADDRESS:PORT");
            break;
        case TRACKER:
            tracker.address = optarg;
            if (!split(optarg, other, sizeof other, other_port, sizeof other_port))
                return usage("--tracker: ADDRESS:PORT");
            break;
        case SESSION:
            session_s = number(optarg, LONGEST_S);
            if (session_s == 0) return usage("--session-timeout: whole seconds, a million at most");
            break;
        case WORK:
            work = optarg;
            break;
        case WITH_PARENT:
            if ((parent = (pid_t)number(optarg, INT_MAX)) == 0) return usage("--with-parent: the number of a process");
            break;
        case HELP:
            return usage(NULL);
        default:
            return usage("see below");
        }
    }
    if (tracker.key == NULL || !is_plain(tracker.key)) return usage("--key: letters, digits and . _ -, at most 100");
    if (optind != count) return usage("options only");
    if (tracker.address != NULL && is_loopback(address) && !is_loopback(other))
        return usage("--tracker: clients would be sent to this board's 127.0.0.1; name an address of it with --listen");
    snprintf(tracker.match_key, MATCH_KEY, "%s", tracker.key); /* until a tracker hands out others */
    int listener = listen_at(address, port);
    if (listener < 0) return 1;
    if ((mkdir(work, 0700) != 0 && errno != EEXIST) || chdir(work) != 0) return failed(work);
    if ((agent_lock = take_lock(AGENT_LOCK)) < 0) {
        say("another agent works in %s; name another folder with --work", work);
        return 1;
    }
    if (parent != 0) die_with(parent);
    remove_old_sessions();
    hold_signals();
    dlopen("libtvm_runtime_extra.so", RTLD_NOW | RTLD_GLOBAL); /* random numbers; without, who wants them is told */
    printf("%d\n", tracker.port);
    fflush(stdout);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* nobody reads on: what code says there goes to the log */
    say("serves %s at %s:%d", tracker.key, address, tracker.port);
    run(listener);
    say("ends");
    return 0;
}
