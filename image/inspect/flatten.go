package inspect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// flatten returns every leaf of a value's JSON form by its path, such as
// "uki.sections[3].sha256". Empty lists and objects are leaves, too.
func flatten(prefix string, v any) (map[string]string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", prefix, err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, fmt.Errorf("decode %s: %w", prefix, err)
	}
	out := map[string]string{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for name, value := range v {
				walk(strings.TrimPrefix(at+"."+name, "."), value)
			}
			if len(v) == 0 {
				out[at] = "{}"
			}
		case []any:
			for i, value := range v {
				walk(at+"["+strconv.Itoa(i)+"]", value)
			}
			if len(v) == 0 {
				out[at] = "[]"
			}
		case string:
			out[at] = v
		case nil:
			out[at] = "null"
		default:
			out[at] = fmt.Sprint(v)
		}
	}
	walk(prefix, tree)
	return out, nil
}

// sameJSON compares two values by the leaves of their JSON forms and returns
// how many there are. All that differs is in the error.
func sameJSON(prefix string, got, want any) (int, error) {
	a, err := flatten(prefix, got)
	if err != nil {
		return 0, err
	}
	b, err := flatten(prefix, want)
	if err != nil {
		return 0, err
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	var different []error
	for _, path := range slices.Sorted(maps.Keys(all)) {
		x, inA := a[path]
		y, inB := b[path]
		if inA && inB && x == y {
			continue
		}
		different = append(different, &Mismatch{What: path, Got: orAbsent(x, inA), Want: orAbsent(y, inB)})
	}
	return len(b), several(different)
}

func orAbsent(s string, there bool) string {
	if !there {
		return "absent"
	}
	return s
}

// maxTold is how many differences of one check are told one by one.
const maxTold = 5

// several makes one error of many, of which the first ones are told.
func several(errs []error) error {
	switch n := len(errs); {
	case n == 0:
		return nil
	case n == 1:
		return errs[0]
	default:
		var b strings.Builder
		for i, err := range errs[:min(n, maxTold)] {
			if i > 0 {
				b.WriteString("; ")
			}
			b.WriteString(err.Error())
		}
		if n > maxTold {
			fmt.Fprintf(&b, "; and %d more", n-maxTold)
		}
		return &many{text: b.String(), first: errs[0]}
	}
}

// many is several errors; errors.As finds the first.
type many struct {
	text  string
	first error
}

func (m *many) Error() string { return m.text }
func (m *many) Unwrap() error { return m.first }
