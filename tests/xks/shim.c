/* A PKCS #11 module that passes everything on to another and is slow, dead or broken on command.
 * P11SHIM_MODULE: the other module. P11SHIM_CONTROL: a file of one line, read at each encryption and decryption:
 *   (empty)        nothing special         sleep MICROSECONDS    takes so long
 *   hang           until the line changes  die                   the process ends at once
 *   fail CODE      answers this return code
 * P11SHIM_SLEEP_MICROS: takes so long, whatever the file says. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long (*call)();
/* CK_FUNCTION_LIST of PKCS #11 2.40: a version, then functions in the order of the standard. */
struct list { unsigned char version[8]; call function[68]; };
enum { GET_FUNCTION_LIST = 3, ENCRYPT = 30, DECRYPT = 34 };
static struct list *real, ours;

static int command(char *word, long *number) {
  char line[128] = "";
  const char *fixed = getenv("P11SHIM_SLEEP_MICROS");
  if (fixed) { strcpy(word, "sleep"); *number = atol(fixed); return 1; }
  FILE *file = fopen(getenv("P11SHIM_CONTROL"), "r");
  if (file) { if (!fgets(line, sizeof line, file)) line[0] = 0; fclose(file); }
  *number = 0; word[0] = 0;
  return sscanf(line, "%31s %ld", word, number) > 0;
}

/* Nonzero: the answer. */
static unsigned long obey(void) {
  char word[32]; long number;
  while (command(word, &number) && !strcmp(word, "hang")) usleep(10000);
  if (!strcmp(word, "sleep")) usleep(number);
  if (!strcmp(word, "die")) _exit(9);
  return strcmp(word, "fail") ? 0 : (unsigned long)number;
}

static unsigned long work(call next, unsigned long session, void *in, unsigned long len, void *out, unsigned long *out_len) {
  /* Without a buffer it is the length that is asked for: no HSM is. */
  unsigned long failure = out ? obey() : 0;
  return failure ? failure : next(session, in, len, out, out_len);
}
static unsigned long encrypt(unsigned long s, void *in, unsigned long len, void *out, unsigned long *out_len) { return work(real->function[ENCRYPT], s, in, len, out, out_len); }
static unsigned long decrypt(unsigned long s, void *in, unsigned long len, void *out, unsigned long *out_len) { return work(real->function[DECRYPT], s, in, len, out, out_len); }

unsigned long C_GetFunctionList(struct list **out) {
  if (!real) {
    void *module = dlopen(getenv("P11SHIM_MODULE"), RTLD_NOW);
    if (!module) { fprintf(stderr, "shim: %s\n", dlerror()); return 5; }
    call get = (call)dlsym(module, "C_GetFunctionList");
    if (get(&real)) return 5;
    ours = *real;
    ours.function[GET_FUNCTION_LIST] = (call)C_GetFunctionList;
    ours.function[ENCRYPT] = (call)encrypt;
    ours.function[DECRYPT] = (call)decrypt;
  }
  *out = &ours;
  return 0;
}
