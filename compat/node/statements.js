'use strict'
// node-postgres's program of prepared statements: named and parameterised queries; it makes no other state of a session.

const { Client, Pool } = require('pg')
const { check, config, failure, query, queries, run, schema } = require('./smoke.js')

const star = 'select * from turns where id < $1 order by id'
const view = 'select name, statement, parameter_types::text p, from_sql from pg_prepared_statements order by name'

// shared are texts that both clients prepare under one name. They are not a multiple of three, so that with two clients and three
// server connections lent in turn each of them meets each connection.
const shared = [
  ['select $1::int + 1 as n, $2::text as t', [1, 'héllo']],
  ['select $1::timestamptz as w, $2::bytea as y, $3::float8 as f', [new Date(Date.UTC(2024, 1, 29, 12, 34, 56)), Buffer.from([0, 1, 255]), 1.5]],
  ['select $1::int8[] as a, $2::bool as o, $3::text as nothing', [[1, 2, 1099511627776], true, null]],
  ['select count(*), max(v) from turns where id > $1', [0]],
]

const texts = new Set()

// counting notes the texts of a client's statements.
class Counting extends Client {
  query(...args) {
    texts.add(typeof args[0] === 'string' ? args[0] : args[0].text)
    return super.query(...args)
  }
}

// named runs a named query: node-postgres prepares it where the client has not done that yet.
const named = (client, say, name, text, values) => query(client, say, { name, text, values })

async function turns(a, b) {
  await query(a, 'turns/create', 'create table turns (id int primary key, v text)')
  for (let n = 0; n < 7; n++) { // PostgreSQL may change to a generic plan after five
    for (const [i, [text, values]] of shared.entries()) {
      await named(a, 'turns/a', `compat ${i}`, text, values)
      await named(b, 'turns/b', `compat ${i}`, text, values)
      await query(b, 'turns/b unnamed', text, values)
    }
    await named(a, 'turns/a inserts', 'compat insert', 'insert into turns values ($1, $2)', [n, `a${n}`])
    await named(b, 'turns/b inserts it again', 'compat insert', 'insert into turns values ($1, $2)', [n, 'b'])
    await named(a, 'turns/a divides', 'compat divide', 'select 6 / $1::int as q', [n - 3])
    await named(a, 'turns/a', 'compat own', "select $1::text || 'a' as v", ['x']) // the same name
    await named(b, 'turns/b', 'compat own', "select $1::text || 'b' as v", ['x'])
  }
  await inTransaction(a)
  await altered(a, b)
  await query(a, 'turns/drop', 'drop table turns')
}

// inTransaction has a client use statements in a transaction, some for the first time, and after an error there.
async function inTransaction(client) {
  const [text, values] = shared[0]
  const double = ['select $1::numeric * 2 as n', ['1.25']]
  await query(client, 'transaction/begin', 'begin')
  await named(client, 'transaction/known', 'compat 0', text, values)
  await named(client, 'transaction/new', 'compat new', ...double)
  await query(client, 'transaction/savepoint', 'savepoint s')
  await named(client, 'transaction/error', 'compat divide', 'select 6 / $1::int as q', [0])
  await named(client, 'transaction/refused', 'compat 0', text, values)
  await named(client, 'transaction/new, refused', 'compat never', ...double)
  await query(client, 'transaction/rollback to', 'rollback to s')
  await named(client, 'transaction/known', 'compat 0', text, values)
  await query(client, 'transaction/rollback', 'rollback')
  for (let n = 0; n < 4; n++) {
    await named(client, 'transaction/kept', 'compat new', ...double)
    await named(client, 'transaction/never prepared', 'compat never', ...double)
  }
}

// altered has clients use statements whose table has got another column, unnamed and of new names. The old one is not used again:
// node-postgres does not have it described, so that docs/pinning.md lets it show either the error or the new column.
async function altered(a, b) {
  await named(a, 'altered/star', 'compat star', star, [2])
  await query(b, 'altered/unnamed star', star, [2])
  await query(a, 'altered/alter', 'alter table turns add x int default 7')
  for (let n = 0; n < 4; n++) {
    await named(a, 'altered/new star', 'compat new star', star, [2])
    await named(b, 'altered/new star', 'compat star', star, [2])
    await query(b, 'altered/unnamed star', star, [2])
  }
}

// sideBySide has both clients run queries at once.
async function sideBySide(a, b) {
  for (let n = 0; n < 12; n++) {
    const one = { name: `compat both ${n % 5}`, text: `select ${n % 5} + $1::int as n, 6 / $1::int as q`, values: [n % 4] }
    const results = await Promise.all([a, b].map((client) => client.query(one).then((r) => r.rows, failure)))
    check('side by side', ...results)
  }
}

// again drops statements in every way that there is, and prepares statements of those names by SQL.
async function again(a, b) {
  for (const way of ['deallocate compat_again', 'deallocate all', 'discard all', 'select 1']) {
    await query(a, 'again/sql prepare', 'prepare compat_again(int) as select $1 * 2 as a')
    await query(b, 'again/sql prepare', "prepare compat_again(text) as select $1 || '!' as b")
    for (let n = 0; n < 4; n++) {
      await named(a, 'again/named', 'compat again', 'select $1::int * 3 as a', [n])
      await query(a, 'again/a', 'execute compat_again(7)')
      await query(b, 'again/b', "execute compat_again('x')")
    }
    await query(a, 'again/twice', 'prepare compat_again as select 1')
    await query(a, 'again/view', view)
    await query(a, `again/${way}`, way)
    await query(a, 'again/gone or not', 'execute compat_again(7)')
    await named(a, 'again/named, gone or not', 'compat again', 'select $1::int * 3 as a', [1])
    await query(b, 'again/not gone', "execute compat_again('x')")
    await query(a, 'again/deallocate', 'deallocate all')
    await query(b, 'again/deallocate', 'deallocate all')
  }
}

// pooled has the clients of a pool prepare what others have, as they come.
async function pooled() {
  const pool = new Pool({ ...config, max: 4, Client: Counting })
  const sums = await Promise.all(
    Array.from({ length: 60 }, (_, n) => pool.query({ name: 'compat pooled', text: 'select $1::int * 2 as n', values: [n] }).then((r) => r.rows[0].n)),
  )
  check('pooled', sums)
  await pool.end()
}

// connected runs part with clients of their own.
async function connected(part) {
  const clients = [new Counting(config), new Counting(config)]
  for (const client of clients) await client.connect()
  try {
    await part(...clients)
  } finally {
    for (const client of clients) await client.end()
  }
}

// warm has three connections open at once, so that what may stand between has three, too.
async function warm() {
  const clients = [new Client(config), new Client(config), new Client(config)]
  for (const client of clients) {
    await client.connect()
    await client.query('begin')
  }
  for (const client of clients) await client.query('rollback')
  return clients
}

async function main() {
  const clients = await warm()
  await clients[0].query(`drop schema if exists ${schema} cascade; create schema ${schema}`)
  for (const part of [queries, turns, sideBySide, again, pooled]) {
    try {
      await connected(part)
    } catch (error) {
      check(part.name, `FAILED: ${error.stack}`)
      process.exitCode = 1
    }
  }
  await clients[0].query(`drop schema ${schema} cascade`)
  for (const client of clients) await client.end()
  check('texts', texts.size)
  if (!process.exitCode) console.log('done')
}

run(main)
