package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryAim is how much memory the runtime may use before the garbage
	// collector works harder, bytes.
	memoryAim = 160 << 20
	// idleGC is the garbage collector's percentage below memoryAim: at the
	// default of 100 a service whose live heap is small collects many times a
	// second for nothing.
	idleGC = 400
	// busyGC is its percentage at the least, for a service that needs more than
	// memoryAim.
	busyGC = 35
)

// tuneGC trades memory that nobody needs for the time of the garbage collector,
// until ctx ends. It changes nothing if GOGC or GOMEMLIMIT is set.
func tuneGC(ctx context.Context) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	percent, limit := debug.SetGCPercent(idleGC), debug.SetMemoryLimit(memoryAim)
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	t := time.NewTicker(time.Second)
	defer t.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		metrics.Read(live)
		// The limit alone would have the collector run without end when what
		// lives comes near to it.
		heap, stacks := int64(live[0].Value.Uint64()), int64(live[1].Value.Uint64())
		debug.SetMemoryLimit(max(memoryAim, heap+heap*busyGC/100+stacks))
	}
}
