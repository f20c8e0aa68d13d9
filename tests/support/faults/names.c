/* Preloaded into a worker: the name NAME_SERVED resolves to loopback, unless the file NAME_GONE exists. Then lookups fail,
   and each appends a byte to the file. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  const char *name = getenv("NAME_SERVED"), *gone = getenv("NAME_GONE");
  if (!real) real = (int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))dlsym(RTLD_NEXT, "getaddrinfo");
  if (!node || !name || !gone || strcmp(node, name)) return real(node, service, hints, found);
  int file = open(gone, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file >= 0) {
    int written = write(file, ".", 1) == 1;
    close(file);
    return written ? EAI_NONAME : EAI_FAIL;
  }
  return real("127.0.0.1", service, hints, found);
}
