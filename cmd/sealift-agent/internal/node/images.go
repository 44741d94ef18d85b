package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// importer brings the container images of the root file system into the
// container runtime.
type importer struct {
	dir      string   // of the archives
	command  []string // to which an archive's path is appended
	rootHash string
	marker   func(rootHash, archive string) string
	run      func(ctx context.Context, args []string) error
	step     func(format string, args ...any)
	sleep    func(context.Context, time.Duration) error
}

// importAll imports every archive that was not imported before, and repeats
// one that fails until ctx ends.
func (im *importer) importAll(ctx context.Context) error {
	archives, err := im.missing()
	if err != nil {
		return fmt.Errorf("import images: %w", err)
	}
	for _, a := range archives {
		pause := restartFirst
		for {
			err := im.importOne(ctx, a)
			if err == nil {
				break
			}
			im.step("image %s not imported, trying again in %s: %v", filepath.Base(a), pause, err)
			if err := im.sleep(ctx, pause); err != nil {
				return fmt.Errorf("import images: %w", err)
			}
			pause = min(2*pause, restartMax)
		}
	}
	if len(archives) > 0 {
		im.step("images imported: %d", len(archives))
	}
	return nil
}

// missing lists the archives without a marker, in the order of their names.
func (im *importer) missing() ([]string, error) {
	entries, err := os.ReadDir(im.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		path := filepath.Join(im.dir, e.Name())
		_, err := os.Stat(im.marker(im.rootHash, path))
		if e.Type().IsRegular() && errors.Is(err, fs.ErrNotExist) {
			out = append(out, path)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return out, nil
}

func (im *importer) importOne(ctx context.Context, archive string) error {
	if err := im.run(ctx, append(slices.Clone(im.command), archive)); err != nil {
		return err
	}
	// The runtime does not sync what it unpacks. The marker must not outlive
	// the image in a power cut.
	if err := syncState(); err != nil {
		return err
	}
	return replaceFile(im.marker(im.rootHash, archive), []byte(archive+"\n"), 0o644)
}

// runtimeEnv is the environment of the programs that the agent runs itself.
func runtimeEnv() []string {
	return []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=/tmp"}
}

// runOnce runs a program to its end.
func (n *Node) runOnce(ctx context.Context, args []string) error {
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		return fmt.Errorf("run %q: want an absolute path", args)
	}
	log, err := OpenLog("/var/log/"+filepath.Base(args[0])+".log", n.mirror(filepath.Base(args[0])))
	if err != nil {
		return err
	}
	p, err := n.procs.Start(Command{Args: args, Env: runtimeEnv(), Out: log.Sink()})
	if err != nil {
		return errors.Join(err, log.Close())
	}
	select {
	case ws := <-p.Done():
		err = log.drain()
		if ws.Exited() && ws.ExitStatus() == 0 {
			return err
		}
		return errors.Join(fmt.Errorf("%s: %s", args[0], describe(ws)), err)
	case <-ctx.Done():
		return errors.Join(ctx.Err(), log.Close())
	}
}
