/* What a client of TVM's RPC finds on a board, beside the functions of TVM's own runtime.
 *
 * Plain C over the stable C interface of tvm-ffi: no C++ library has to match the board's. TVM's server in Python
 * registers the same two functions, workpath and load_module (tvm/rpc/server.py); the rest is ours.
 */
#define _GNU_SOURCE
#include "session.h"

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum {
    MAX_NAME = 200,
    MAX_CORES = 1024,
    ONE_CORE_PER_THREAD = -2, /* tvm::runtime::threading::ThreadGroup::kSpecifyOneCorePerThread */
};

typedef TVMFFIByteArray Text;

static int refuse(const char *kind, const char *why) {
    TVMFFIErrorSetRaisedFromCStr(kind, why);
    return -1;
}

static void report(const char *what) {
    TVMFFIObjectHandle raised = NULL;
    TVMFFIErrorMoveFromRaised(&raised);
    if (raised == NULL) {
        fprintf(stderr, "adapt-agent: %s\n", what);
        return;
    }
    const TVMFFIErrorCell *error = (const void *)((const char *)raised + sizeof(TVMFFIObject));
    fprintf(stderr, "adapt-agent: %s: %.*s\n", what, (int)error->message.size, error->message.data);
    TVMFFIObjectDecRef(raised);
}

static bool is_text(const TVMFFIAny *value, Text *text) {
    switch (value->type_index) {
    case kTVMFFIRawStr:
        *text = (Text){value->v_c_str, strlen(value->v_c_str)};
        return true;
    case kTVMFFISmallStr:
        *text = (Text){value->v_bytes, value->small_str_len};
        return true;
    case kTVMFFIStr:
        *text = *(const Text *)((const char *)value->v_obj + sizeof(TVMFFIObject));
        return true;
    default:
        return false;
    }
}

static TVMFFIAny integer(int64_t value) { return (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value}; }

static TVMFFIAny raw_text(const char *text) { return (TVMFFIAny){.type_index = kTVMFFIRawStr, .v_c_str = text}; }

static int call(const char *name, TVMFFIAny *arguments, int count, TVMFFIAny *result) {
    TVMFFIObjectHandle function = NULL;
    Text text = {name, strlen(name)};
    if (TVMFFIFunctionGetGlobal(&text, &function) != 0) return -1;
    if (function == NULL) {
        char why[MAX_NAME];
        snprintf(why, sizeof why, "TVM's runtime here has no %s", name);
        return refuse("RuntimeError", why);
    }
    int failed = TVMFFIFunctionCall(function, arguments, count, result);
    TVMFFIObjectDecRef(function);
    return failed;
}

/* Files */

/* The name of a file in the working directory: a client that could leave it would write where it likes. */
static int own_file(const TVMFFIAny *arguments, int32_t count, char name[MAX_NAME + 3]) {
    Text text;
    if (count != 1 || !is_text(arguments, &text)) return refuse("TypeError", "expected the name of a file");
    if (text.size == 0 || text.size > MAX_NAME || text.data[0] == '.' || memchr(text.data, '/', text.size) ||
        memchr(text.data, 0, text.size))
        return refuse("ValueError", "a file of the session has a plain name of at most 200 bytes");
    snprintf(name, MAX_NAME + 3, "./%.*s", (int)text.size, text.data);
    return 0;
}

static int work_path(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
    (void)self;
    char name[MAX_NAME + 3];
    if (own_file(arguments, count, name) != 0) return -1;
    Text path = {name, strlen(name)};
    return TVMFFIStringFromByteArray(&path, result);
}

static int load_module(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
    (void)self;
    char name[MAX_NAME + 3];
    if (own_file(arguments, count, name) != 0) return -1;
    TVMFFIAny path = raw_text(name);
    return call("ffi.ModuleLoadFromFile", &path, 1, result);
}

/* Threads */

/* As device_targets/threads.py: one core for each thread, the calling one first; nothing where cores are too few. */
static int start_threads(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result) {
    (void)self;
    if (count != 1 || arguments->type_index != kTVMFFIInt) return refuse("TypeError", "expected a number of threads");
    int64_t wanted = arguments->v_int64;
    *result = (TVMFFIAny){.type_index = kTVMFFINone};
    cpu_set_t allowed, first;
    CPU_ZERO(&first);
    if (wanted < 2 || wanted > MAX_CORES || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 0;
    if (CPU_COUNT(&allowed) < wanted) return 0;
    char *list = calloc((size_t)wanted, 8), *end = list; /* names of cores, of 4 digits at most */
    TVMFFIAny *names = calloc((size_t)wanted, sizeof *names), made = {0};
    if (list == NULL || names == NULL) {
        free(list);
        free(names);
        return refuse("MemoryError", "no room for the names of cores");
    }
    for (int core = 0, found = 0; core < CPU_SETSIZE && found < wanted; core++) {
        if (!CPU_ISSET(core, &allowed)) continue;
        if (found == 0) CPU_SET(core, &first);
        snprintf(end, 8, "%d", core);
        names[found++] = raw_text(end);
        end += 8;
    }
    int failed = call("ffi.Array", names, (int)wanted, &made);
    if (!failed) {
        TVMFFIAny given[3] = {integer(ONE_CORE_PER_THREAD), integer(wanted), made}, none = {0};
        failed = call("runtime.config_threadpool", given, 3, &none);
        TVMFFIObjectDecRef(made.v_obj);
    }
    free(names);
    free(list);
    if (!failed && sched_setaffinity(0, sizeof first, &first) != 0) return refuse("OSError", "cores cannot be tied");
    return failed;
}

/* The session */

static const struct {
    const char *name;
    TVMFFISafeCallType function;
} offered[] = {
    {"tvm.rpc.server.workpath", work_path},
    {"tvm.rpc.server.load_module", load_module},
    {"adapt.start_threads", start_threads},
};

int offer_functions(void) {
    for (size_t i = 0; i < sizeof offered / sizeof *offered; i++) {
        TVMFFIObjectHandle made = NULL;
        Text name = {offered[i].name, strlen(offered[i].name)};
        if (TVMFFIFunctionCreate(NULL, offered[i].function, NULL, &made) != 0 ||
            TVMFFIFunctionSetGlobal(&name, made, 1) != 0) {
            report(offered[i].name);
            return -1;
        }
        TVMFFIObjectDecRef(made);
    }
    return 0;
}

int serve_socket(int connection) {
    TVMFFIAny descriptor = integer(connection), none = {0};
    if (call("rpc.ServerLoop", &descriptor, 1, &none) != 0) {
        report("the session ended badly");
        return -1;
    }
    return 0;
}
