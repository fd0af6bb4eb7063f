/* Memory of a thread: what one call needs at once, cut into parts at 64 bytes; it grows with the largest call, and goes
with the thread. */

#ifndef LORICA_ROOM_H
#define LORICA_ROOM_H

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

static inline ptrdiff_t up(ptrdiff_t n, ptrdiff_t step) { return (n + step - 1) / step * step; }

static __thread char *room;
static __thread size_t room_bytes;

static pthread_key_t room_key;
static pthread_once_t room_once = PTHREAD_ONCE_INIT;

static inline void room_keyed(void) { pthread_key_create(&room_key, free); }

/* NULL where memory is missing. */
static inline char *room_of(size_t bytes) {
    pthread_once(&room_once, room_keyed);
    if (bytes > room_bytes) {
        free(room);
        room_bytes = 0;
        room = aligned_alloc(64, up(bytes, 4096));
        if (room) room_bytes = up(bytes, 4096);
        pthread_setspecific(room_key, room);
    }
    return room;
}

static inline void *take(char **at, size_t bytes) {
    void *taken = *at;
    *at += up(bytes, 64);
    return taken;
}

#endif
