'use strict'
// The smoke program of node-postgres: simple, parameterised and named queries, cursors, COPY streams, its pool.

const crypto = require('crypto')
const { once } = require('events')
const { Readable } = require('stream')
const { pipeline } = require('stream/promises')
const { Client, Pool, Query } = require('pg')
const Cursor = require('pg-cursor')
const { from: copyFrom, to: copyTo } = require('pg-copy-streams')

const schema = 'compat_node'
const lock = 70105
const workers = 20
const transactions = 20
const config = {
  application_name: 'compat_node',
  options: `-c search_path=${schema} -c geqo=off -c timezone=Europe/Berlin`,
}

function check(name, ...seen) {
  const text = seen.map((item) => (typeof item === 'string' ? item : JSON.stringify(item))).join(' ')
  console.log(`- ${name}: ${text.replaceAll('\n', '\\n')}`)
}

// failure renders what a program can learn from an error.
function failure(error) {
  const { severity, code, message, detail, hint, position, table, column, constraint, routine } = error
  return JSON.stringify([severity, code, message, detail, hint, position, table, column, constraint, routine])
}

function answer(result) {
  const all = Array.isArray(result) ? result : [result]
  return JSON.stringify(all.map((r) => [r.command, r.rowCount, r.fields.map((f) => `${f.name}:${f.dataTypeID}/${f.format}`), r.rows]))
}

async function query(client, name, ...args) {
  try {
    check(name, answer(await client.query(...args)))
  } catch (error) {
    check(name, failure(error))
  }
}

// connected runs part on a connection of its own, whose notices and parameters are gathered.
async function connected(part) {
  const client = new Client(config)
  client.parameters = {}
  client.on('notice', (notice) => check('notice', notice.severity, notice.code, notice.message))
  client.connection.on('parameterStatus', (p) => (client.parameters[p.parameterName] = p.parameterValue))
  await client.connect()
  try {
    return await part(client)
  } finally {
    await client.end()
  }
}

async function startup(client) {
  for (const name of Object.keys(client.parameters).sort()) check(`startup/parameter ${name}`, client.parameters[name])
  await query(client, 'startup/options', "select current_setting('search_path') s, current_setting('geqo') g")
  const nowhere = new Client({ ...config, database: 'compat_no_such_database' })
  nowhere.on('error', () => {})
  await nowhere.connect().then(
    () => check('startup/no such database', 'connected'),
    (error) => check('startup/no such database', failure(error)),
  )
}

async function queries(client) {
  const values = [42, '1099511627776', 'héllo', true, 1.5, Buffer.from([0, 1, 255]), new Date(Date.UTC(2024, 1, 29, 12, 34, 56, 789)), [1, 2, 3], null]
  const types = 'select $1::int4 i, $2::int8 b, $3::text t, $4::bool o, $5::float8 f, $6::bytea y, $7::timestamptz w, $8::int4[] a, $9::text n'
  await query(client, 'queries/parameters', types, values)
  for (let n = 0; n < 3; n++) await query(client, 'queries/named', { name: 'compat types', text: types, values })
  await query(client, 'queries/array rows', { text: 'select 1 a, 2 a', rowMode: 'array' })
  await query(client, 'queries/binary', { text: 'select $1::int4 a', values: [7], binary: true })
  await query(client, 'queries/jsonb', 'select $1::jsonb j, $2::text[] l', [{ b: [1, null], a: 'x' }, ['a', 'b,c', null]])
  await query(client, 'queries/literals', "select null::int x, array[1,null,3] a, 12.340::numeric n, '1 day'::interval i")
  await query(client, 'queries/several', "select 1 as a; create table k (n int primary key); insert into k values (1), (2); select 'x' as b where false")
  await query(client, 'queries/several, one fails', 'insert into k values (3); select 1 / 0; insert into k values (4)')
  await query(client, 'queries/notice', 'create table if not exists k (n int)')
  await query(client, 'queries/empty', '')
  await query(client, 'queries/returning', 'insert into k values ($1) returning n, n * 2 as twice', [9])
  for (const args of [['selec 1'], ['select 1 / $1::int', [0]], ['select $1::int', ['x']], ['insert into k values ($1)', [1]]]) {
    await query(client, 'queries/error', ...args)
  }
  await query(client, 'queries/named error', { name: 'compat bad', text: 'select * from nowhere', values: [] })
  for (const n of [1, 0, 2]) await query(client, 'queries/named', { name: 'compat divide', text: 'select 10 / $1::int as q', values: [n] })
  const queued = [1, 2, 0, 4].map((n) => query(client, `queries/queued ${n}`, 'select 8 / $1::int as q', [n]))
  await Promise.all(queued)
  await query(client, 'queries/usable', 'select count(*) from k')
}

async function transactionsPart(client) {
  for (const text of [
    'create table tx (n int)',
    'begin isolation level serializable',
    'show transaction_isolation',
    'insert into tx values (1)',
    'savepoint s',
    'select 1 / 0',
    'select 1',
    'rollback to savepoint s',
    'insert into tx values (2)',
    'release savepoint s',
    'commit',
    'begin',
    'insert into tx values (3)',
    'select * from nowhere',
    'commit',
    'begin; insert into tx values (4)',
    'rollback',
    'select array_agg(n) from tx',
  ]) {
    await query(client, `transactions/${text}`, text)
  }
}

async function cursors(client) {
  const cursor = client.query(new Cursor('select n from generate_series(1, $1::int) n', [250]))
  for (let rows = [null]; rows.length > 0; ) {
    rows = await cursor.read(100)
    check('cursors/read', rows.length, rows.length ? rows[rows.length - 1] : null)
  }
  await cursor.close()
  const early = client.query(new Cursor('select n from generate_series(1, 1000000) n'))
  check('cursors/first rows', await early.read(3))
  await early.close()
  await query(client, 'cursors/usable', "select 'after the cursor' as s")
  const failing = client.query(new Cursor('select 10 / (5 - n) as q from generate_series(1, 9) n'))
  check('cursors/before the error', await failing.read(2))
  await failing.read(10).then(
    (rows) => check('cursors/error', rows),
    (error) => check('cursors/error', failure(error)),
  )
  await query(client, 'cursors/usable', "select 'after the error' as s")
}

async function copyIn(client, name, text, lines) {
  const stream = client.query(copyFrom(text))
  try {
    await pipeline(Readable.from(lines), stream)
    check(name, stream.rowCount)
  } catch (error) {
    check(name, error.code ? failure(error) : error.message)
  }
}

async function copying(client) {
  function* rows(first, count, last = '') {
    for (let n = 0; n < count; n++) yield `${first + n}\trow ${n}\n`
    if (last) yield last
  }
  await query(client, 'copy/create', 'create table c (id int primary key, v text)')
  await copyIn(client, 'copy/in', 'copy c from stdin', rows(0, 5000))
  await copyIn(client, 'copy/duplicate', 'copy c from stdin', rows(6000, 10, '1\told\n'))
  await copyIn(client, 'copy/malformed', 'copy c from stdin', rows(7000, 10, 'x\ty\n'))
  await query(client, 'copy/after errors', 'select count(*) from c')
  const chunks = []
  const out = client.query(copyTo('copy (select * from c where id % 1000 = 0 order by id) to stdout'))
  for await (const chunk of out) chunks.push(chunk)
  check('copy/out', Buffer.concat(chunks).toString(), out.rowCount)
  await query(client, 'copy/usable', 'select count(*) from c')
}

async function large(client) {
  await query(client, 'large/1 MiB parameter', 'select length($1::text), md5($1::text)', ['0123456789abcdef'.repeat(1 << 16)])
  const { rows } = await client.query('select repeat(chr(97 + n % 26), 1000) as t from generate_series(1, $1::int) n', [5000])
  const hash = crypto.createHash('sha256')
  for (const row of rows) hash.update(row.t)
  check('large/5 MB of rows', rows.length, hash.digest('hex'))
  const one = await client.query("select string_agg(md5(n::text), '') as t from generate_series(1, 160000) n")
  check('large/5 MB in one value', one.rows[0].t.length, crypto.createHash('sha256').update(one.rows[0].t).digest('hex'))
}

async function session(client) {
  await query(client, 'session/set', "set datestyle = 'German'")
  check('session/parameter', client.parameters.DateStyle)
  await query(client, 'session/show', 'show datestyle')
  await query(client, 'session/set_config', "select set_config('compat.tenant', $1, false)", ['seven'])
  await query(client, 'session/temp', 'create temp table mine as select 1 as n')
  await query(client, 'session/temp', 'select * from mine')
  await query(client, 'session/lock', 'select pg_advisory_lock($1)', [lock])
  await connected(async (other) => {
    await query(other, 'session/other', "select current_setting('datestyle'), current_setting('compat.tenant', true) t")
    await query(other, 'session/other', 'select * from mine')
    await query(other, 'session/other', 'select pg_try_advisory_lock($1)', [lock])
  })
  await query(client, 'session/show', "select current_setting('compat.tenant')")
  await query(client, 'session/unlock', 'select pg_advisory_unlock($1)', [lock])
  await query(client, 'session/timeout', 'set statement_timeout = 50')
  await query(client, 'session/timed out', 'select pg_sleep(20)')
  await query(client, 'session/discard', 'discard all')
  await query(client, 'session/gone', 'select * from mine')
  await query(client, 'session/show', 'show statement_timeout')
}

// cancel uses what node-postgres offers for it: a second client that cancels the first one's active query.
async function cancel(client) {
  const text = 'select pg_sleep(50) /* compat_node */'
  for (let n = 0; n < 2; n++) {
    const active = new Query(text)
    const ended = once(active, 'end').then(
      () => check('cancel/canceled', 'not canceled'),
      (error) => check('cancel/canceled', failure(error)),
    )
    client.query(active)
    await connected(async (other) => {
      const running = "select count(*)::int as n from pg_stat_activity where query = $1 and wait_event = 'PgSleep'"
      while ((await other.query(running, [text])).rows[0].n === 0);
    })
    const canceler = new Client(config)
    const gone = once(canceler.connection, 'end')
    canceler.cancel(client, active)
    await ended
    await gone
    await query(client, 'cancel/usable', "select 'still here' as s")
  }
}

async function notify(client) {
  await client.query('listen compat_node')
  const heard = async (text, values) => {
    const [message] = await Promise.all([once(client, 'notification'), client.query(text, values)])
    return message[0]
  }
  for (const payload of ['first', 'second']) {
    const { channel, payload: text } = await heard('select pg_notify($1, $2)', ['compat_node', payload])
    check('notify/own', channel, text)
  }
  await client.query("begin; notify compat_node, 'third'")
  check('notify/after commit', (await heard('commit')).payload)
  await query(client, 'notify/unlisten', 'unlisten *')
}

// count adds one to the worker's own row and to the shared one in each transaction, some of which are undone first.
async function count(pool, worker) {
  const add = { name: 'compat add', text: 'update counter set n = n + 1 where id in (0, $1)', values: [worker] }
  for (let n = 0; n < transactions; n++) {
    const client = await pool.connect()
    try {
      for (const end of n % 5 === 0 ? ['rollback', 'commit'] : ['commit']) {
        await client.query('begin')
        await client.query(add)
        await client.query(end)
      }
    } finally {
      client.release()
    }
  }
}

async function pooled(client) {
  await client.query('create table counter as select id, 0 as n from generate_series(0, 20) id')
  const pool = new Pool({ ...config, max: workers })
  await Promise.all(Array.from({ length: workers }, (_, n) => count(pool, n + 1)))
  await query(pool, 'pool/shared', 'select n from counter where id = 0')
  await query(pool, 'pool/own', 'select min(n), max(n), count(*) from counter where id > 0')
  await pool.end()
}

async function admin(text) {
  const client = new Client()
  await client.connect()
  await client.query(text)
  await client.end()
}

async function main() {
  await admin(`drop schema if exists ${schema} cascade; create schema ${schema}`)
  for (const part of [startup, queries, transactionsPart, cursors, copying, large, session, cancel, notify, pooled]) {
    try {
      await connected(part)
    } catch (error) {
      check(part.name, `FAILED: ${error.stack}`)
      process.exitCode = 1
    }
  }
  await admin(`drop schema ${schema} cascade`)
  if (!process.exitCode) console.log('done')
}

// run runs a program to its end.
function run(program) {
  program().catch((error) => {
    console.error(error)
    process.exit(1)
  })
}

if (require.main === module) run(main)

module.exports = { check, config, failure, query, queries, run, schema }
