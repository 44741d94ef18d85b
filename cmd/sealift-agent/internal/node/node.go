// Package node is the agent as PID 1 of the root file system. Node.Run makes
// the system ready for a Kubernetes distro, starts its services, imports the
// container images that came with the image, keeps everything running and the
// network configured, and ends the machine cleanly when it is told to.
//
// What a distro needs is data: profiles.NodeConfig, from the root file system.
// What is of this one machine and boot came from the initramfs: Handover.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealift/sealift/cmd/sealift-agent/internal/boot"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/console"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/netup"
	"github.com/sealift/sealift/cmd/sealift-agent/internal/prefetch"
	"github.com/sealift/sealift/profiles"
)

// ResolvConf is where the name servers are written; /etc/resolv.conf links to it.
const ResolvConf = "/run/resolv.conf"

// maxNodeConfig bounds the node's configuration, in bytes.
const maxNodeConfig = 1 << 20

// Node runs one node. All fields are required.
type Node struct {
	Handover *Handover
	Config   *profiles.NodeConfig
	RootHash string // hex
	Console  *console.Printer
	Log      *slog.Logger

	procs       *Processes
	supervisors []*supervisor
	logs        []*Log
	joinServer  *url.URL // nil if the distro need not be told

	mu     sync.Mutex
	nodeIP string // guarded by mu
}

// ReadConfig reads the node's configuration from the root file system that is
// mounted at root.
func ReadConfig(root string) (*profiles.NodeConfig, error) {
	b, err := os.ReadFile(filepath.Join(root, profiles.NodeConfigPath))
	if err != nil {
		return nil, fmt.Errorf("read the node configuration: %w", err)
	}
	return ParseConfig(b)
}

// ParseConfig reads a node configuration. It is under dm-verity, so the checks
// are for mistakes and not for malice.
func ParseConfig(b []byte) (*profiles.NodeConfig, error) {
	if len(b) > maxNodeConfig {
		return nil, fmt.Errorf("node configuration: %d bytes, at most %d allowed", len(b), maxNodeConfig)
	}
	var c profiles.NodeConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("node configuration: %w", err)
	}
	for _, s := range c.Services {
		if s.Name == "" || strings.ContainsAny(s.Name, "/\x00") || len(s.Args) == 0 || !strings.HasPrefix(s.Args[0], "/") {
			return nil, fmt.Errorf("node configuration: service %q: want a name without a slash and a program with an absolute path", s.Name)
		}
	}
	for _, p := range c.Prefetch {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("node configuration: program %q to read ahead has no absolute path", p)
		}
	}
	paths := []string{c.Join.CA, c.Join.Bootstrap, c.Join.Kubeconfig}
	if c.Join.Server != "" {
		paths = append(paths, c.Join.Server)
	}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/var/") && !strings.HasPrefix(p, "/run/") {
			return nil, fmt.Errorf("node configuration: join path %q is not below /var or /run", p)
		}
	}
	if !slices.Contains(profiles.JoinFormats(), c.Join.Format) {
		return nil, fmt.Errorf("node configuration: join format %q, want one of %q", c.Join.Format, profiles.JoinFormats())
	}
	if c.ImagesDir != "" && (!strings.HasPrefix(c.ImagesDir, "/var/") || filepath.Clean(c.ImagesDir) != c.ImagesDir) {
		return nil, fmt.Errorf("node configuration: directory of images %q is not below /var", c.ImagesDir)
	}
	return &c, nil
}

// Run runs the node until a signal or the power button ends it, and returns
// how the machine is to end. An error means that the node never ran.
func (n *Node) Run(ctx context.Context) (boot.End, error) {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGPWR)
	defer signal.Stop(signals)
	if err := boot.CatchCtrlAltDel(); err != nil {
		return "", err
	}
	if err := prepareSystem(n.Handover, n.Config); err != nil {
		return "", fmt.Errorf("prepare the node: %w", err)
	}
	if err := prepareJoin(n.Handover.Join, n.Config.Join); err != nil {
		return "", err
	}
	var err error
	if n.joinServer, err = joinServer(n.Config.Join); err != nil {
		return "", err
	}
	n.procs = NewProcesses()
	n.nodeIP = n.Handover.Lease.Address.Addr().String()
	n.Console.Step("node %s, address %s", n.Handover.NodeName, n.nodeIP)

	reaping, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReaping()
	go n.procs.Run(reaping)

	running, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { n.prefetch(running) })
	wg.Go(func() { n.keepNetwork(running) })
	wg.Go(func() {
		watchPowerButton(running, "/dev/input", func() {
			select {
			case signals <- unix.SIGPWR:
			default:
			}
		})
	})
	wg.Go(func() {
		if err := n.start(running, &wg); err != nil && running.Err() == nil {
			n.Log.Error("services not started", "err", err)
		}
	})
	var end boot.End
	select {
	case sig := <-signals:
		end = endFor(sig)
		n.Console.Step("shutting down (%s): %s", sig, end)
	case <-ctx.Done():
		end = boot.EndPowerOff
	}
	stop()
	wg.Wait()
	// The kubelet stops before the container runtime that it talks to.
	for _, s := range slices.Backward(n.supervisors) {
		s.stop()
		<-s.done
	}
	n.endProcesses()
	return end, n.close()
}

// start starts the services in their order, each after the socket of the one
// before it accepts connections, then what may run beside them.
func (n *Node) start(ctx context.Context, wg *sync.WaitGroup) error {
	for _, s := range n.Config.Services {
		log, err := OpenLog("/var/log/"+s.Name+".log", n.mirror(s.Name))
		if err != nil {
			return err
		}
		n.logs = append(n.logs, log)
		cgroup, err := makeCgroup(s.Name)
		if err != nil {
			return err
		}
		sup := &supervisor{
			service: s, expand: n.expand, procs: n.procs, out: log.Sink(), cgroup: cgroup,
			step: n.Console.Step, sleep: sleep,
		}
		n.mu.Lock()
		n.supervisors = append(n.supervisors, sup)
		n.mu.Unlock()
		sup.supervise(ctx)
		if s.Socket != "" {
			if err := waitSocket(ctx, s.Socket); err != nil {
				return err
			}
		}
	}
	if j := n.Handover.Join; j != nil {
		wg.Go(func() {
			joined, err := forgetToken(ctx, n.Config.Join, j.Expires)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				n.Log.Error("join token not forgotten", "err", err)
			case joined:
				n.Console.Step("joined the cluster")
			default:
				n.Console.Step("the join token expired before the node joined: reboot for a new one")
			}
		})
	}
	if len(n.Config.Import) == 0 {
		return nil
	}
	im := importer{
		dir: profiles.ImagesDir, command: n.Config.Import, rootHash: n.RootHash, marker: markerName,
		run: n.runOnce, step: n.Console.Step, sleep: sleep,
	}
	return im.importAll(ctx)
}

// prefetch reads what the first agent had no time for, on every CPU.
func (n *Node) prefetch(ctx context.Context) {
	if err := prefetch.Files(ctx, "/", n.Config.Prefetch, runtime.NumCPU()); err != nil {
		n.Log.Warn("programs not read ahead", "err", err)
	}
}

// keepNetwork renews the lease, and restarts the services that know the
// node's address if it changes.
func (n *Node) keepNetwork(ctx context.Context) {
	c := netup.Config{ResolvConf: ResolvConf, Log: n.Log}
	c.Keep(ctx, n.Handover.Lease, func(l *netup.Lease) {
		n.mu.Lock()
		n.nodeIP = l.Address.Addr().String()
		restart := n.supervisors
		n.mu.Unlock()
		n.Console.Step("the node's address is %s now", l.Address.Addr())
		for _, s := range restart {
			if uses(s.service, profiles.VarNodeIP) {
				s.restart()
			}
		}
	})
}

// expand replaces the variables of an argument.
func (n *Node) expand(arg string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	pairs := []string{profiles.VarNodeIP, n.nodeIP, profiles.VarNodeName, n.Handover.NodeName}
	if n.joinServer != nil {
		pairs = append(pairs, profiles.VarJoinServer, n.joinServer.String(), profiles.VarJoinHost, urlHost(n.joinServer))
	}
	return strings.NewReplacer(pairs...).Replace(arg)
}

// mirror returns what shows errors of a program on the console of an image
// that is marked for debugging, or nil.
func (n *Node) mirror(name string) func(line string) {
	if !n.Handover.Config.Debug {
		return nil
	}
	return func(line string) {
		if isError(line) {
			n.Console.Step("%s: %s", name, line)
		}
	}
}

// close ends the logs and unmounts. The machine ends whatever this returns.
func (n *Node) close() error {
	var errs []error
	for _, l := range n.logs {
		errs = append(errs, l.Close())
	}
	if err := errors.Join(errs...); err != nil {
		n.Log.Warn("logs lost output", "err", err)
	}
	if err := unmountAll(); err != nil {
		n.Log.Warn("not everything unmounted", "err", err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
