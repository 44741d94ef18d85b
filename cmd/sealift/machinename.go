package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sealift/sealift/attest"
	"github.com/sealift/sealift/attest/api"
	"github.com/sealift/sealift/attest/client/operator"
)

// shortestID is how many digits of an id may stand for it.
const shortestID = 8

// whichMachine is what commands that take a machine by a name say of it.
const whichMachine = "\n\nID is a machine's id, its first digits, at least 8, or the name of its node."

// shortID returns the digits with which the ids begin that s may mean, where s is no
// whole id: digits themselves, or a node's name.
func shortID(s string) (digits string, ok bool) {
	digits = strings.TrimPrefix(s, api.NodeName(attest.MachineID{}, 0))
	return digits, len(digits) >= shortestID && len(digits) < len(attest.MachineID{})*2 && strings.Trim(digits, "0123456789abcdef") == ""
}

// checkMachine refuses what is neither an id nor short for one.
func checkMachine(s string) error {
	if _, ok := shortID(s); ok {
		return nil
	}
	_, err := parseMachine(s)
	return err
}

// findMachine returns the id of the machine that s means: its id, the first digits of it,
// or the name of its node. An error says which machines it may mean if there are several.
//
// It is not for what gives trust: of machines that are not on record yet another one may
// be meant.
func findMachine(ctx context.Context, client *operator.Client, s string) (attest.MachineID, error) {
	digits, ok := shortID(s)
	if !ok {
		return parseMachine(s)
	}
	var found []api.Machine
	for m, err := range client.MachinesLike(ctx, digits) {
		if err != nil {
			return attest.MachineID{}, err
		}
		// A name is a whole one. Two nodes may have names that begin alike.
		if digits == s || m.NodeName == s {
			found = append(found, m)
		}
		if len(found) > 2 {
			break
		}
	}
	switch len(found) {
	case 0:
		return attest.MachineID{}, withHint(fmt.Errorf("there is no machine %s", s), "sealift machine list shows the ids and the names of nodes")
	case 1:
		return found[0].ID, nil
	}
	return attest.MachineID{}, usage{fmt.Errorf("%s may mean machine %s or %s: give more digits", s, found[0].ID, found[1].ID)}
}

// trustedMachine is parseMachine for a command that gives trust, which takes a whole id:
// who compares it with what is meant compares all of it.
func trustedMachine(_ context.Context, _ *operator.Client, s string) (attest.MachineID, error) {
	if _, ok := shortID(s); ok {
		return attest.MachineID{}, withHint(usage{errors.New("a machine that is to be trusted is named by its whole id, 64 hex digits")}, "sealift machine show %s", s)
	}
	return parseMachine(s)
}
