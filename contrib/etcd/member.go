package etcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/pgmoor/pgmoor"
)

// member is one instance as a member of those that share. Its goroutine is that of Budget.Share.
type member struct {
	*Budget
	id    string
	share *pgmoor.Share
	guard guard
	wake  chan struct{} // something has changed in etcd; capacity 1
	wg    sync.WaitGroup

	lease    clientv3.LeaseID // 0: none
	renewed  time.Time        // when the last renewal that succeeded was sent
	began    time.Time
	heard    bool      // etcd was reached
	hasFloor bool      // the floor may be used
	floorAt  time.Time // when it may be, if it may not yet and there is a seat
	failing  bool      // and it was logged
	peak     []peak    // of the demand, of late
	held     int       // the share, when it was last read or written
	doubt    lowered
	wanted   int // as etcd knows it; -1: it does not
}

// peak is how many connections the instance could use at a time.
type peak struct {
	n  int
	at time.Time
}

// lowered is a write of a smaller share of which nobody knows whether it was carried out or will be: until the key is written again, it may be at any
// time.
type lowered struct {
	modified int64 // revision of the share's key before
	to       int
}

// memory is for how long a demand counts.
const memory = 2 * time.Second

func newMember(b *Budget, s *pgmoor.Share) (*member, error) {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	return &member{
		Budget: b, id: hex.EncodeToString(id), share: s, wake: make(chan struct{}, 1), wanted: -1,
		guard: guard{share: s, reset: make(chan struct{}, 1)}, began: time.Now(),
	}, nil
}

// run shares until ctx ends.
func (m *member) run(ctx context.Context) {
	watching, stop := context.WithCancel(ctx)
	m.wg.Add(2)
	go m.see(watching)
	go m.guardLease(watching)
	for ctx.Err() == nil {
		m.note(ctx, m.step(ctx))
		m.rest(ctx)
	}
	stop()
	m.wg.Wait()
	m.leave()
}

// guardLease is the goroutine of the guard.
func (m *member) guardLease(ctx context.Context) {
	defer m.wg.Done()
	m.guard.watch(ctx, func() {
		m.cfg.Logger.Error("pgmoor/etcd: the lease could not be renewed: what is beyond the floor is closed", "floor", m.cfg.Floor)
	})
}

// see is the goroutine that waits for changes in etcd.
func (m *member) see(ctx context.Context) {
	defer m.wg.Done()
	for ctx.Err() == nil {
		for range m.cfg.Client.Watch(clientv3.WithRequireLeader(ctx), m.cfg.Prefix, clientv3.WithPrefix()) {
			select {
			case m.wake <- struct{}{}:
			default:
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.cfg.Interval):
		}
	}
}

// rest waits until it is time for the next step.
func (m *member) rest(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(m.cfg.Interval / 10):
	}
	select {
	case <-ctx.Done():
	case <-m.wake:
	case <-m.share.Changed():
	case <-time.After(m.cfg.Interval):
	}
}

// note logs the first of a row of errors, and the end of that.
func (m *member) note(ctx context.Context, err error) {
	failing := err != nil
	if failing == m.failing || ctx.Err() != nil {
		return
	}
	m.failing = failing
	if failing {
		m.cfg.Logger.Warn("pgmoor/etcd: shares do not move while etcd cannot be used", "err", err)
	} else {
		m.cfg.Logger.Info("pgmoor/etcd: etcd is back")
	}
}

// step renews the lease when it is time to, and moves the share towards what is fair.
func (m *member) step(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, m.cfg.TTL/5)
	defer stop()
	m.useFloor()
	if err := m.renew(ctx); err != nil {
		return err
	}
	st, err := m.read(ctx)
	if err != nil {
		return err
	}
	if err := m.sit(ctx, st); err != nil {
		return err
	}
	if err := m.want(ctx, st); err != nil {
		return err
	}
	return m.move(ctx, st)
}

// useFloor begins to use the floor where the time for it has come.
func (m *member) useFloor() {
	switch now := time.Now(); {
	case m.hasFloor:
	case !m.floorAt.IsZero() && !now.Before(m.floorAt):
	case m.floorAt.IsZero() && !m.heard && now.Sub(m.began) >= m.cfg.TTL: // etcd was away all the time
	default:
		return
	}
	if !m.hasFloor {
		m.hasFloor = true
		m.guard.setFloor(m.cfg.Floor)
	}
}

func (m *member) floor() int {
	if m.hasFloor {
		return m.cfg.Floor
	}
	return 0
}

// renew keeps the lease alive, or takes a new one.
func (m *member) renew(ctx context.Context) error {
	sent := time.Now()
	if m.lease != 0 && sent.Sub(m.renewed) < m.cfg.TTL/6 {
		return nil
	}
	if m.lease == 0 {
		r, err := m.cfg.Client.Grant(ctx, int64(m.cfg.TTL/time.Second))
		if err != nil {
			return err
		}
		m.lease, m.wanted = r.ID, -1
	} else if _, err := m.cfg.Client.KeepAliveOnce(ctx, m.lease); err != nil {
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			m.lease = 0
			m.guard.end()
		}
		return err
	}
	m.renewed, m.heard = sent, true
	m.guard.extend(sent.Add(m.cfg.TTL - m.cfg.Margin))
	return nil
}

// read reads what stands in etcd. What the instance believes to have follows it.
func (m *member) read(ctx context.Context) (*state, error) {
	r, err := m.cfg.Client.Get(ctx, m.cfg.Prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	st := read(r, m.cfg.Prefix, m.id)
	peers := st.peers()
	m.peers.Store(&peers)
	if has := st.shares[m.id]; has < m.held { // somebody has deleted it, or etcd has lost it
		m.guard.allow(m.floor(), has)
		m.share.Cut()
	}
	m.held = st.shares[m.id]
	return st, nil
}

// unchanged are the conditions under which a state's seats and shares are still those that were read.
func (m *member) unchanged(st *state) []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(m.cfg.Prefix+seatKeys).WithPrefix(), "<", st.revision+1),
		clientv3.Compare(clientv3.ModRevision(m.cfg.Prefix+shareKeys).WithPrefix(), "<", st.revision+1),
	}
}

// sit makes sure that the instance has a seat, where there is one.
func (m *member) sit(ctx context.Context, st *state) error {
	number := int(m.seat.Load())
	if number != 0 && st.seats[number].ID == m.id {
		return nil
	}
	for number, s := range st.seats {
		if s.ID == m.id { // it was taken, and nobody said so
			m.seated(number, m.cfg.Margin)
			return nil
		}
	}
	reserved := m.cfg.Instances * m.cfg.Floor
	if st.leased()+st.reserved(reserved) > m.cfg.Limit { // it was shared otherwise before
		m.loseFloor()
		return nil
	}
	for number = 1; number <= m.cfg.Instances; number++ {
		if st.seats[number].ID == "" {
			return m.take(ctx, st, number, reserved)
		}
	}
	m.loseFloor()
	return nil
}

// take takes a seat that is free.
func (m *member) take(ctx context.Context, st *state, number, reserved int) error {
	was := st.seats[number]
	is := seat{ID: m.id, Address: m.cfg.Address, Reserved: reserved}
	value, err := json.Marshal(is)
	if err != nil {
		return err
	}
	key := m.cfg.Prefix + seatKeys + strconv.Itoa(number)
	r, err := m.cfg.Client.Txn(ctx).If(m.unchanged(st)...).
		Then(clientv3.OpPut(key, string(value), clientv3.WithLease(m.lease))).Commit()
	if err != nil || !r.Succeeded {
		return err
	}
	is.modified = r.Header.Revision
	st.seats[number], st.revision = is, r.Header.Revision
	if was.modified == 0 { // it may be that of an instance that has just died, whose connections may not be gone yet
		m.seated(number, m.cfg.Margin)
	} else {
		m.seated(number, 0)
	}
	return nil
}

// seated takes note of a seat, whose floor may be used after a time.
func (m *member) seated(number int, after time.Duration) {
	m.seat.Store(int32(number))
	m.floorAt = time.Now().Add(after)
	m.useFloor()
}

// loseFloor stops using the floor: others have all seats.
func (m *member) loseFloor() {
	m.floorAt = time.Time{}
	m.seat.Store(0)
	if m.hasFloor {
		m.hasFloor = false
		m.cfg.Logger.Error("pgmoor/etcd: all seats are taken, by more instances than Config.Instances or by some that have just died: there is no floor until one is free", "instances", m.cfg.Instances)
		m.guard.setFloor(0)
		m.share.Cut()
	}
}

// demand returns how many connections the instance could use beyond its floor, the most of late, and a few to spare.
func (m *member) demand() int {
	d, now := m.share.Demand(), time.Now()
	m.peak = append(m.peak, peak{n: d.Open - d.Idle + d.Waiting, at: now})
	n := 0
	for len(m.peak) > 0 && now.Sub(m.peak[0].at) > memory {
		m.peak = m.peak[1:]
	}
	for _, p := range m.peak {
		n = max(n, p.n)
	}
	n += 1 + n/4
	if most := m.share.Most(); most > 0 {
		n = min(n, most)
	}
	return min(max(n-m.floor(), 0), m.cfg.Limit)
}

// want tells the others how much the instance could use.
func (m *member) want(ctx context.Context, st *state) error {
	n := m.demand()
	if n != m.wanted {
		_, err := m.cfg.Client.Put(ctx, m.cfg.Prefix+wantKeys+m.id, strconv.Itoa(n), clientv3.WithLease(m.lease))
		if err != nil {
			return err
		}
		m.wanted = n
	}
	st.wants[m.id] = n
	return nil
}

// move changes the share towards what is fair: a larger one is used when etcd has it, a smaller one given up when it is not used any more.
func (m *member) move(ctx context.Context, st *state) error {
	room := m.cfg.Limit - st.reserved(m.cfg.Instances*m.cfg.Floor)
	has, free, fair := st.shares[m.id], room-st.leased(), st.fair(room, m.id)
	uses := has
	if free < 0 || has > fair && st.short(m.id) {
		uses = min(has, fair)
	}
	if m.doubt.modified == st.modified {
		uses = min(uses, m.doubt.to)
	} else {
		m.doubt = lowered{}
	}
	m.guard.allow(m.floor(), uses)
	switch {
	case uses < has:
		open := m.share.Demand().Open - m.floor() // from here on it does not grow beyond uses
		return m.put(ctx, st, min(max(uses, open), has), m.mine(st))
	case has < fair && free > 0:
		return m.put(ctx, st, has+min(fair-has, free), m.unchanged(st))
	}
	return nil
}

// mine is the condition under which the own share is still what was read: a write that was thought lost must not undo a later one.
func (m *member) mine(st *state) []clientv3.Cmp {
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(m.cfg.Prefix+shareKeys+m.id), "=", st.modified)}
}

// put changes the share, unless others were faster.
func (m *member) put(ctx context.Context, st *state, n int, conditions []clientv3.Cmp) error {
	has := st.shares[m.id]
	if n == has {
		return nil
	}
	r, err := m.cfg.Client.Txn(ctx).If(conditions...).
		Then(clientv3.OpPut(m.cfg.Prefix+shareKeys+m.id, strconv.Itoa(n), clientv3.WithLease(m.lease))).Commit()
	if err != nil {
		if n < has {
			m.doubt = lowered{modified: st.modified, to: n}
		}
		return err
	}
	if r.Succeeded {
		m.held = n
	}
	if r.Succeeded && n > has {
		m.guard.allow(m.floor(), n)
	}
	return nil
}

// leaveLimit bounds how long giving everything back may take.
const leaveLimit = 2 * time.Second

// leave gives the seat and the share back, since no connection is open any more.
func (m *member) leave() {
	m.guard.end()
	if m.lease == 0 {
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), leaveLimit)
	defer stop()
	st, err := m.read(ctx)
	if number := int(m.seat.Load()); err == nil && number != 0 && st.seats[number].ID == m.id {
		key := m.cfg.Prefix + seatKeys + strconv.Itoa(number)
		_, err = m.cfg.Client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", st.seats[number].modified)).
			Then(clientv3.OpPut(key, "")).Commit()
	}
	if err == nil {
		_, err = m.cfg.Client.Revoke(ctx, m.lease)
	}
	if err != nil {
		m.cfg.Logger.Warn("pgmoor/etcd: the share is not given back before its lease ends", "err", err, "ttl", m.cfg.TTL)
	}
}
