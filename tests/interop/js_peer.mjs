// A js-libp2p node that obeys lines on standard input, and answers each with a line of JSON; see README.md.
// Its arguments are the addresses that it listens at, those through relays among them. After `--public` it tells others
// of them as they are, and upgrades circuits to direct connections.

import { createInterface } from 'node:readline'

// js-libp2p is written for Node 22, and this is all of it that Node 20 lacks.
Promise.withResolvers ??= function () {
  const made = {}
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }))
  return made
}

const { createLibp2p } = await import('libp2p')
const { quic } = await import('@chainsafe/libp2p-quic')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { circuitRelayServer, circuitRelayTransport } = await import('@libp2p/circuit-relay-v2')
const { dcutr } = await import('@libp2p/dcutr')
const { multiaddr } = await import('@multiformats/multiaddr')

const isPublic = process.argv[2] === '--public'
const listen = process.argv.slice(isPublic ? 3 : 2)
const node = await createLibp2p({
  addresses: { listen, announce: isPublic ? listen : [] },
  transports: [quic(), circuitRelayTransport()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify({ runOnLimitedConnection: true }),
    ping: ping({ runOnLimitedConnection: true }),
    relay: circuitRelayServer({ reservations: { applyDefaultLimit: false } }),
    ...(isPublic ? { dcutr: dcutr() } : {})
  }
})

const connectionWith = (peer) => {
  const found = node.getConnections().find((connection) => connection.remotePeer.toString() === peer)
  if (found === undefined) throw new Error(`there is no connection with ${peer}`)
  return found
}

const verbs = {
  async status () {
    const addresses = node.getMultiaddrs().map(String)
    return {
      peer: node.peerId.toString(),
      listen: addresses.filter((address) => !address.includes('/p2p-circuit')),
      connected: node.getPeers().map(String),
      direct: node.getConnections()
        .filter((connection) => !connection.remoteAddr.toString().includes('/p2p-circuit'))
        .map((connection) => connection.remotePeer.toString()),
      circuits: addresses.filter((address) => address.includes('/p2p-circuit'))
    }
  },
  async dial (address) {
    const connection = await node.dial(multiaddr(address), { signal: AbortSignal.timeout(10_000) })
    return { peer: connection.remotePeer.toString() }
  },
  async ping (peer) {
    const options = { signal: AbortSignal.timeout(5_000), runOnLimitedConnection: true }
    return { ms: await node.services.ping.ping(connectionWith(peer).remotePeer, options) }
  },
  async identify (peer) {
    const said = await node.services.identify.identify(connectionWith(peer), { signal: AbortSignal.timeout(5_000) })
    return { agent: said.agentVersion, protocols: said.protocols }
  },
  async streams (peer, count) {
    const connection = connectionWith(peer)
    const opened = Array.from({ length: Number(count) }, (_, nth) => connection.newStream(`/no/such/${nth}`, {
      signal: AbortSignal.timeout(10_000)
    }))
    const outcomes = await Promise.allSettled(opened)
    return { refused: outcomes.filter((outcome) => outcome.status === 'rejected').length }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const [verb, ...words] = line.split(' ')
  let answer
  try {
    answer = await verbs[verb](...words)
  } catch (error) {
    answer = { error: `${error.name}: ${error.message}` }
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`)
}
await node.stop()
process.exit(0)
