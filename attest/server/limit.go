package server

import (
	"context"
	"sync"
	"time"
)

// maxKeys bounds the memory of a limiter: a key is at most 64 bytes of text
// and its entry about 150 bytes.
const maxKeys = 100_000

// limiter is a token bucket for each key, in the form of the generic cell rate
// algorithm: one time per key says when its bucket would be full.
type limiter struct {
	interval time.Duration // one token
	burst    time.Duration // the whole bucket
	lenient  bool          // a key for which there is no room is allowed

	mu    sync.Mutex
	full  map[string]time.Time // guarded by mu
	swept time.Time            // guarded by mu
}

// newLimiter allows each key a burst of so many requests, and one more after
// each interval.
func newLimiter(interval time.Duration, burst int) *limiter {
	return &limiter{interval: interval, burst: interval * time.Duration(burst), full: map[string]time.Time{}}
}

// newProvenLimiter bounds keys that are proven. Anybody can make such keys in
// software: those that fill the limiter must not shut out others.
func newProvenLimiter(interval time.Duration, burst int) *limiter {
	l := newLimiter(interval, burst)
	l.lenient = true
	return l
}

// allow takes a token of key's bucket. If there is none it returns how long
// until there is.
func (l *limiter) allow(key string, now time.Time) (bool, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.full[key]
	if at.Before(now) {
		at = now
	}
	at = at.Add(l.interval)
	if wait := at.Sub(now) - l.burst; wait > 0 {
		return false, wait
	}
	if _, known := l.full[key]; !known && len(l.full) >= maxKeys {
		l.sweep(now)
		if len(l.full) >= maxKeys {
			// More keys are busy at once than are kept. Refusing the new ones
			// keeps those that are served.
			return l.lenient, l.interval
		}
	}
	l.full[key] = at
	return true, 0
}

// shares are counting semaphores, one for each key, so that no key takes all
// of what the keys share. An entry is there only while it is in use.
type shares struct {
	size int

	mu  sync.Mutex
	use map[string]*share // guarded by mu
}

type share struct {
	slots   slots
	holders int // that hold a slot or wait for one; guarded by shares.mu
}

func newShares(size int) *shares { return &shares{size: size, use: map[string]*share{}} }

// take waits at most so long for one of key's slots. release gives it back.
func (s *shares) take(ctx context.Context, key string, wait time.Duration) (release func(), ok bool) {
	s.mu.Lock()
	one := s.use[key]
	if one == nil {
		one = &share{slots: make(slots, s.size)}
		s.use[key] = one
	}
	one.holders++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if one.holders--; one.holders == 0 {
			delete(s.use, key)
		}
	}
	if !one.slots.take(ctx, wait) {
		leave()
		return nil, false
	}
	return func() { one.slots.release(); leave() }, true
}

// budget is a limiter for what is logged, that counts what it does not allow.
type budget struct {
	*limiter

	count      sync.Mutex
	suppressed map[string]int64 // guarded by count
}

func newBudget(interval time.Duration, burst int) *budget {
	return &budget{limiter: newLimiter(interval, burst), suppressed: map[string]int64{}}
}

// log reports whether key may be logged, with the number of times that it was
// not since it last was.
func (b *budget) log(key string, now time.Time) (bool, int64) {
	b.count.Lock()
	defer b.count.Unlock()
	n, known := b.suppressed[key]
	if ok, _ := b.allow(key, now); ok {
		delete(b.suppressed, key)
		return true, n
	}
	if known || len(b.suppressed) < maxKeys {
		b.suppressed[key] = n + 1
	}
	return false, 0
}

// sweep forgets the keys whose bucket is full again, at most once an interval.
// The caller holds mu.
func (l *limiter) sweep(now time.Time) {
	if now.Sub(l.swept) < l.interval {
		return
	}
	l.swept = now
	for k, at := range l.full {
		if !at.After(now) {
			delete(l.full, k)
		}
	}
}
