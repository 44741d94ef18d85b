package recovery

import (
	"fmt"
	"strconv"
	"strings"
)

// A typed text is lines of symbols of Crockford's base32 alphabet, in groups
// that people can read to each other. Each line ends in two check symbols of a
// Reed-Solomon code over GF(32) that also covers the line's number. Two wrong
// symbols of a line are always found, and so are two that were swapped and two
// lines that were; of one wrong symbol it is known which.
const (
	alphabet   = "0123456789ABCDEFGHJKMNPQRSTVWXYZ" // without I, L, O and U
	groupSize  = 5
	lineSize   = 20 // symbols
	dataSize   = lineSize - checkSize
	checkSize  = 2
	symbolBits = 5
)

// GF(32) by the primitive polynomial x^5 + x^2 + 1, whose root is 2.
const polynomial = 0x25

func multiply(a, b byte) byte {
	var p byte
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		if a <<= 1; a&0x20 != 0 {
			a ^= polynomial
		}
	}
	return p
}

// power is 2 to the n, n from 0 to 30.
func power(n int) byte {
	p := byte(1)
	for range n {
		p = multiply(p, 2)
	}
	return p
}

// inverse of a, which is not 0: a to the 30.
func inverse(a byte) byte {
	p := byte(1)
	for range 30 {
		p = multiply(p, a)
	}
	return p
}

// syndromes of a line are both 0 if it is whole. Its number stands at the place
// behind the last symbol.
func syndromes(line []byte, number int) (s0, s1 byte) {
	for i, c := range line {
		s0 ^= c
		s1 ^= multiply(c, power(i))
	}
	n := byte(number)
	return s0 ^ n, s1 ^ multiply(n, power(lineSize))
}

// encode renders data as lines. Its length is a multiple of 45 bytes, which are
// four lines.
func encode(data []byte) []string {
	if len(data)%45 != 0 {
		panic("recovery: BUG: text of " + strconv.Itoa(len(data)) + " bytes")
	}
	var lines []string
	line := make([]byte, 0, lineSize)
	acc, bits := uint(0), 0
	for _, b := range data {
		acc, bits = acc<<8|uint(b), bits+8
		for bits >= symbolBits {
			bits -= symbolBits
			line = append(line, byte(acc>>bits)&31)
			if len(line) < dataSize {
				continue
			}
			// c18 + c19 = s0 and c18*2^18 + c19*2^19 = s1.
			s0, s1 := syndromes(line, len(lines)+1)
			a18, a19 := power(dataSize), power(dataSize+1)
			c19 := multiply(s1^multiply(s0, a18), inverse(a18^a19))
			lines = append(lines, show(append(line, s0^c19, c19)))
			line = line[:0]
		}
	}
	return lines
}

// show writes a line in its groups.
func show(line []byte) string {
	var b strings.Builder
	for i, c := range line {
		if i > 0 && i%groupSize == 0 {
			b.WriteByte(' ')
		}
		b.WriteByte(alphabet[c])
	}
	return b.String()
}

// TypoError says where a typed text is wrong.
type TypoError struct {
	Line  int    // from 1; 0: the text as a whole
	Group int    // from 1; 0: not known
	Text  string // what is wrong
}

func (e *TypoError) Error() string {
	switch {
	case e.Line == 0:
		return e.Text
	case e.Group == 0:
		return fmt.Sprintf("line %d: %s", e.Line, e.Text)
	}
	return fmt.Sprintf("line %d, group %d: %s", e.Line, e.Group, e.Text)
}

// symbols reads the symbols of a text, in either case, without space and dashes.
// O is read as 0, I and L as 1.
func symbols(text string) ([]byte, error) {
	var out []byte
	for _, r := range strings.ToUpper(text) {
		switch r {
		case ' ', '\t', '\r', '\n', '-', '.':
			continue
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		i := strings.IndexRune(alphabet, r)
		if i < 0 {
			return nil, fmt.Errorf("%q is not used, only digits and letters without U", r)
		}
		out = append(out, byte(i))
	}
	return out, nil
}

// label takes "3:" or "3)" from the start of a line.
func label(line string) string {
	t := strings.TrimLeft(line, " \t")
	if i := strings.IndexAny(t, ":)"); i > 0 && i <= 2 && strings.Trim(t[:i], "0123456789") == "" {
		return t[i+1:]
	}
	return line
}

// decodeLine reads one line, which says by itself which of so many it is. One
// that is none of them is taken for the line that is expected, to say where it
// is wrong.
func decodeLine(text string, lines, expected int) (number int, data []byte, err error) {
	s, err := symbols(label(text))
	if err != nil {
		return 0, nil, &TypoError{Line: expected, Text: err.Error()}
	}
	if len(s) != lineSize {
		return 0, nil, &TypoError{Line: expected, Text: fmt.Sprintf("it has %d characters, want %d", len(s), lineSize)}
	}
	for n := 1; n <= lines; n++ {
		if s0, s1 := syndromes(s, n); s0 == 0 && s1 == 0 {
			return n, s[:dataSize], nil
		}
	}
	// One wrong symbol at place i adds e to s0 and e*2^i to s1.
	s0, s1 := syndromes(s, expected)
	if s0 != 0 && s1 != 0 {
		place := multiply(s1, inverse(s0))
		for i := range lineSize {
			if power(i) == place {
				g := i / groupSize
				return 0, nil, &TypoError{Line: expected, Group: g + 1, Text: fmt.Sprintf("%s has a wrong character", show(s[g*groupSize:(g+1)*groupSize]))}
			}
		}
	}
	return 0, nil, &TypoError{Line: expected, Text: "it has more than one wrong character, or is another line"}
}

// join makes bytes of the data of all lines.
func join(lines [][]byte) []byte {
	var out []byte
	acc, bits := uint(0), 0
	for _, line := range lines {
		for _, c := range line {
			acc, bits = acc<<symbolBits|uint(c), bits+symbolBits
			if bits >= 8 {
				bits -= 8
				out = append(out, byte(acc>>bits))
			}
		}
	}
	return out
}
