'use strict'
// Logs in by node-postgres as the lines on its standard input say, and writes what each came to (compat/go/logins).

const fs = require('fs')
const readline = require('readline')
const { Client } = require('pg')

function config(login) {
  const tls = login.get('tls') === 'true'
  const file = (name) => (login.get(name) ? fs.readFileSync(login.get(name)) : undefined)
  return {
    host: login.get('host'),
    port: Number(login.get('port')),
    user: login.get('user'),
    password: login.get('password') || undefined,
    database: login.get('database'),
    connectionTimeoutMillis: 10000,
    ssl: tls && { ca: file('root'), cert: file('cert'), key: file('key') },
    sslnegotiation: login.get('direct') === 'true' ? 'direct' : undefined,
    enableChannelBinding: login.get('bind') === 'true',
  }
}

async function logIn(login) {
  const client = new Client(config(login))
  let mechanism
  client.on('error', () => {})
  client.connection.on('authenticationSASLContinue', () => (mechanism = client.saslSession?.mechanism))
  try {
    await client.connect()
    const { rows } = await client.query({ text: login.get('asks'), rowMode: 'array' })
    await client.end()
    if (login.get('bind') === 'true' && mechanism !== 'SCRAM-SHA-256-PLUS') return { failure: `it has chosen ${mechanism}` } // it cannot insist
    return { user: rows[0][0], encrypted: String(rows[0][1]) }
  } catch (error) {
    if (error.severity) return { code: error.code, message: error.message }
    return { failure: error.message }
  } finally {
    client.connection.stream.destroy() // end waits for an answer that a connection that failed does not give
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const login = new URLSearchParams(line.replaceAll('&', '%26').replaceAll('\t', '&'))
    const result = await logIn(login)
    console.log(Object.entries(result).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('\t'))
  }
}

main()
