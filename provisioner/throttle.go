package provisioner

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// throttle lets through one log line per message and second, so that a client
// that sends 10,000 bad packets a second does not fill a disk.
type throttle struct {
	mu   sync.Mutex
	last map[string]throttled
}

type throttled struct {
	at      time.Time
	skipped int
}

func (t *throttle) log(now time.Time, log *slog.Logger, level slog.Level, msg string, args ...any) {
	t.mu.Lock()
	if t.last == nil {
		t.last = make(map[string]throttled)
	}
	was := t.last[msg] // msg is a constant of the caller, so the map stays small
	if d := now.Sub(was.at); d >= 0 && d < time.Second {
		was.skipped++
		t.last[msg] = was
		t.mu.Unlock()
		return
	}
	t.last[msg] = throttled{at: now}
	t.mu.Unlock()
	if was.skipped > 0 {
		args = append(args, "skipped", was.skipped)
	}
	log.Log(context.Background(), level, msg, args...)
}
