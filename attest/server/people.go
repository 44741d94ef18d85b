package server

import (
	"errors"
	"fmt"
	"strings"
)

// Person is somebody who may have several names as an operator.
type Person struct {
	Name         string   // for people; unique
	Certificates []string // common names of the operator's certificates
	Tokens       []string // names in the operator's tokens, as the Authenticator gives them
}

// people says whose names are whose: by the name that the audit log has, in
// small letters, the person's.
type people map[string]string

// CheckPeople refuses what New refuses as Config.People.
func CheckPeople(all []Person) error {
	_, err := newPeople(all)
	return err
}

// newPeople checks that no name is of two people.
func newPeople(all []Person) (people, error) {
	p, seen := people{}, map[string]bool{}
	for i, one := range all {
		if one.Name == "" {
			return nil, fmt.Errorf("people[%d] has no name", i)
		}
		if seen[one.Name] {
			return nil, fmt.Errorf("people: %q is there twice", one.Name)
		}
		seen[one.Name] = true
		if len(one.Certificates)+len(one.Tokens) == 0 {
			return nil, fmt.Errorf("people: %q has neither a certificate nor a token", one.Name)
		}
		add := func(name string) error {
			key := strings.ToLower(name)
			if of, there := p[key]; there {
				return fmt.Errorf("people: %q is of %q and of %q", name, of, one.Name)
			}
			p[key] = one.Name
			return nil
		}
		for _, c := range one.Certificates {
			if err := errors.Join(CheckCertificateName(c), add(c)); err != nil {
				return nil, fmt.Errorf("people: certificate of %q: %w", one.Name, err)
			}
		}
		for _, t := range one.Tokens {
			if err := errors.Join(checkName(t), add(bearerPrefix+t)); err != nil {
				return nil, fmt.Errorf("people: token of %q: %w", one.Name, err)
			}
		}
	}
	return p, nil
}

// same reports whether two operators' names are known to be of one person.
func (p people) same(a, b string) bool {
	of := p[strings.ToLower(a)]
	return a == b || of != "" && of == p[strings.ToLower(b)]
}

// differ reports whether two operators' names are known to be of two people:
// the configuration says so of both, or both logged in the same way under two
// names. Somebody with a certificate and a token has two names that nothing
// else connects, so that such a pair is two people only if it is configured.
// Letters' case does not make two names.
func (p people) differ(a, b string) bool {
	one, other := p[strings.ToLower(a)], p[strings.ToLower(b)]
	if one != "" && other != "" {
		return one != other
	}
	return byToken(a) == byToken(b) && !strings.EqualFold(a, b)
}

// byToken reports whether a name is of an operator who showed a token.
func byToken(name string) bool { return strings.HasPrefix(name, bearerPrefix) }
