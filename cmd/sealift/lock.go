package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/profiles"
)

func newResolver(e *env, file, cache string, steps *steps) *inputs.Resolver {
	return &inputs.Resolver{
		Cache: inputs.Cache{Dir: cache}, Client: e.client, Profile: file, Now: e.now(),
		Progress: func(ev inputs.Event) { steps.update(ev.Item, ev.Done, ev.Total) },
	}
}

// lockError marks what a verification refused.
func lockError(err error) error {
	if errors.As(err, new(*inputs.MismatchError)) || errors.As(err, new(*inputs.UntrustedError)) {
		return refused{err}
	}
	return err
}

// counts says in words how many inputs of each kind a lock has.
func counts(lock *profiles.Lock) string {
	parts := []string{fmt.Sprintf("%d Debian packages", len(lock.Debian.Packages))}
	for _, c := range []struct {
		n    int
		what string
	}{
		{len(lock.Go.Builds), "Go programs"}, {len(lock.Distro.Artifacts), "release files of " + lock.Distro.Name + " " + lock.Distro.Version},
		{len(lock.Images), "images by digest"}, {len(lock.Archives), "image archives"}, {len(lock.Sources), "images from source"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	return strings.Join(parts, ", ")
}

// checkLock says what is newer than the lock of a profile.
func checkLock(ctx context.Context, e *env, file, arch, cache string) error {
	p, lock, err := loadProfileFor(file, arch)
	if err != nil {
		return err
	}
	steps := newSteps(e.progress())
	s, err := newResolver(e, file, cache, steps).Check(ctx, p, lock)
	if err != nil {
		steps.fail(err)
		return lockError(err)
	}
	steps.done()
	type unknown struct {
		What  string `json:"what"`
		Error string `json:"error"`
	}
	result := struct {
		File    string         `json:"file"`
		Checked int            `json:"checked"`
		Newer   []inputs.Newer `json:"newer"`
		Unknown []unknown      `json:"unknown"`
		Notes   []string       `json:"notes"`
	}{profiles.LockPathFor(file, p.Arch), s.Checked, append([]inputs.Newer{}, s.Newer...), []unknown{}, append([]string{}, s.Notes...)}
	var lines []string
	for _, n := range s.Newer {
		lines = append(lines, fmt.Sprintf("newer: %s %s: %s, locked is %s", n.Kind, n.Name, n.Available, n.Locked))
	}
	for _, u := range s.Unknown {
		result.Unknown = append(result.Unknown, unknown{u.What, u.Err.Error()})
		lines = append(lines, fmt.Sprintf("not checked: %s: %s", u.What, strings.ReplaceAll(u.Err.Error(), "\n", "; ")))
	}
	for _, n := range s.Notes {
		lines = append(lines, "note: "+n)
	}
	lines = append(lines, fmt.Sprintf("%s: %d inputs checked, %d newer, %d places not reached", result.File, s.Checked, len(s.Newer), len(s.Unknown)))
	if err := e.print(result, "%s", strings.Join(lines, "\n")); err != nil {
		return err
	}
	switch {
	case len(s.Newer) > 0:
		return withHint(fmt.Errorf("%s is behind: %d inputs are newer", result.File, len(s.Newer)), "sealift profile lock %s", file)
	case len(s.Unknown) > 0:
		return fmt.Errorf("%s: %d places could not be reached, so it may be behind", result.File, len(s.Unknown))
	}
	return nil
}
