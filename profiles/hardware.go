package profiles

import (
	"fmt"
	"reflect"
	"strings"
)

// Matches reports whether a machine, whose fields are its own SMBIOS texts and
// no patterns, fits every pattern that is set. An empty Hardware fits nothing:
// a list of machines must not become one of all by an empty entry.
func (h Hardware) Matches(machine Hardware) bool {
	patterns, texts := reflect.ValueOf(h), reflect.ValueOf(machine)
	set := false
	for i := range patterns.NumField() {
		p := patterns.Field(i).String()
		if p == "" {
			continue
		}
		set = true
		if !glob(strings.ToLower(p), strings.ToLower(texts.Field(i).String())) {
			return false
		}
	}
	return set
}

// String lists the fields that are set.
func (h Hardware) String() string {
	var out []string
	v := reflect.ValueOf(h)
	for i := range v.NumField() {
		if s := v.Field(i).String(); s != "" {
			out = append(out, fmt.Sprintf("%s %q", yamlName(v.Type().Field(i)), s))
		}
	}
	return strings.Join(out, ", ")
}

// CheckHardware reports a machine that fits none of the entries. With no entry
// every machine is right.
func CheckHardware(want []Hardware, machine Hardware) error {
	var lines []string
	for _, h := range want {
		if h.Matches(machine) {
			return nil
		}
		lines = append(lines, "("+h.String()+")")
	}
	if len(want) == 0 {
		return nil
	}
	is := machine.String()
	if is == "" {
		is = "nothing of itself"
	}
	return fmt.Errorf("it is not for this machine, which says %s; the profile wants %s", is, strings.Join(lines, " or "))
}

// glob matches a text with a pattern in which * stands for any text and ? for
// one character. Its cost is at most the product of both lengths.
func glob(pattern, text string) bool {
	star, mark := -1, 0 // after the last *, and the text it was tried with
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			p++
			star, mark = p, t
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p, t = p+1, t+1
		case star >= 0:
			mark++
			p, t = star, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
