/*
 * PostgreSQL 18's part of the method oauth: a validator for tests, to which the token "for-<role>" is that role's. It stands
 * without PostgreSQL's headers, which the server's package does not bring along; what is here of them is src/include/fmgr.h
 * and src/include/libpq/oauth.h of version 18, and the server checks both at the load.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

extern char *pstrdup(const char *);

typedef struct {
  int len;
  int version, funcmaxargs, indexmaxkeys, namedatalen, float8byval;
  char abi_extra[32];
  const char *name, *module_version;
} Magic;

const Magic *Pg_magic_func(void) {
  static const Magic magic = {sizeof(Magic), 1800, 100, 32, 64, 1, "PostgreSQL", NULL, NULL};
  return &magic;
}

typedef struct {
  int sversion;
  void *private_data;
} State;

typedef struct {
  bool authorized;
  char *authn_id;
} Result;

typedef struct {
  uint32_t magic;
  void (*startup)(State *);
  void (*shutdown)(State *);
  bool (*validate)(const State *, const char *token, const char *role, Result *);
} Callbacks;

static bool validate(const State *state, const char *token, const char *role, Result *result) {
  (void)state;
  (void)role;
  result->authorized = strncmp(token, "for-", 4) == 0;
  if (result->authorized)
    result->authn_id = pstrdup(token + 4);
  return true;
}

const Callbacks *_PG_oauth_validator_module_init(void) {
  static const Callbacks callbacks = {0x20250220, NULL, NULL, validate};
  return &callbacks;
}
