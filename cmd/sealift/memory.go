package main

import (
	"context"
	"io/fs"
	"log/slog"
	"math"
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
	busyGC = 50
	// leastMemory is what the service needs at the least, bytes; see
	// docs/operations.md.
	leastMemory = 128 << 20
)

// memoryCeiling is what the runtime may use of the memory that there is for this
// process, bytes: four fifths, since SQLite, the kernel's buffers and what the
// runtime has not given back yet are beside it. It warns if that is too little.
func memoryCeiling(root fs.FS, log *slog.Logger) int64 {
	bound, file, err := memoryBound(root)
	if err != nil {
		log.Warn("the memory that there is for this process is not known", "error", err, "hint", "set GOMEMLIMIT")
		return math.MaxInt64
	}
	if bound < leastMemory {
		log.Warn("there is little memory for this process", "bytes", bound, "want", leastMemory, "file", file)
	}
	log.Debug("memory for this process", "bytes", bound, "file", file)
	return bound / 5 * 4
}

// memoryLimit is the runtime's soft limit for what lives now. That alone would
// have the collector run without end when what lives comes near to it, so it
// grows with that, up to the ceiling: past that the kernel ends the process.
func memoryLimit(heap, stacks, ceiling int64) int64 {
	return min(max(memoryAim, heap+heap*busyGC/100+stacks), ceiling)
}

// tuneGC trades memory that nobody needs for the time of the garbage collector,
// until ctx ends, and keeps below the ceiling as long as it can. It changes
// nothing if GOGC or GOMEMLIMIT is set.
func tuneGC(ctx context.Context, ceiling int64) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	percent, limit := debug.SetGCPercent(idleGC), debug.SetMemoryLimit(memoryLimit(0, 0, ceiling))
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
		debug.SetMemoryLimit(memoryLimit(int64(live[0].Value.Uint64()), int64(live[1].Value.Uint64()), ceiling))
	}
}
