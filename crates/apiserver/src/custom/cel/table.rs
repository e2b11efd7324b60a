//! The functions that rules may call, and their types.
//!
//! Invariant: the table is what Kubernetes' environment for definitions has; a function that is not in it does not exist.

use super::types::Type;
use std::collections::HashMap;
use std::sync::LazyLock;

/// One way to call a function.
#[derive(Debug)]
pub struct Overload {
    /// Called on a value, which is the first of `takes`.
    pub member: bool,
    pub takes: Vec<Shape>,
    pub gives: Shape,
}

/// A type with parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Exact(Type<'static>),
    Parameter(u8),
    List(Box<Shape>),
    Map(Box<Shape>, Box<Shape>),
    Optional(Box<Shape>),
}

// `name(types)type`, with a point before what is called on a value. b bool, i int, u uint, d double, s string, y bytes, D duration,
// T timestamp, t type, * dyn, L list of, M map of, O optional of, A B parameters; U url, P ip, C cidr, Q quantity, V semver, F format.
const FUNCTIONS: &str = "\
_==_(AA)b _!=_(AA)b _?_:_(bAA)A _&&_(bb)b _||_(bb)b !_(b)b @not_strictly_false(b)b -_(i)i -_(d)d \
_+_(ii)i _+_(uu)u _+_(dd)d _+_(ss)s _+_(yy)y _+_(LALA)LA _+_(TD)T _+_(DT)T _+_(DD)D \
_-_(ii)i _-_(uu)u _-_(dd)d _-_(TT)D _-_(TD)T _-_(DD)D _*_(ii)i _*_(uu)u _*_(dd)d _/_(ii)i _/_(uu)u _/_(dd)d _%_(ii)i _%_(uu)u \
_[_](LAi)A _[_](MABA)B _[?_](LAi)OA _[?_](MABA)OB _[?_](OLAi)OA _[?_](OMABA)OB @in(ALA)b @in(AMAB)b \
size(s)i size(y)i size(LA)i size(MAB)i .size(s)i .size(y)i .size(LA)i .size(MAB)i \
int(i)i int(u)i int(d)i int(s)i int(T)i int(D)i uint(u)u uint(i)u uint(d)u uint(s)u double(d)d double(i)d double(u)d double(s)d \
string(s)s string(i)s string(u)s string(d)s string(b)s string(y)s string(T)s string(D)s string(P)s string(C)s bytes(y)y bytes(s)y \
bool(b)b bool(s)b duration(D)D duration(s)D timestamp(T)T timestamp(s)T timestamp(i)T dyn(A)* type(A)t \
.contains(ss)b .startsWith(ss)b .endsWith(ss)b .matches(ss)b matches(ss)b .charAt(si)s .indexOf(ss)i .indexOf(ssi)i \
.lastIndexOf(ss)i .lastIndexOf(ssi)i .lowerAscii(s)s .upperAscii(s)s .replace(sss)s .replace(sssi)s .split(ss)Ls .split(ssi)Ls \
.substring(si)s .substring(sii)s .trim(s)s .reverse(s)s .join(Ls)s .join(Lss)s .format(sL*)s strings.quote(s)s \
.find(ss)s .findAll(ss)Ls .findAll(ssi)Ls \
.isSorted(LA)b .sum(Li)i .sum(Lu)u .sum(Ld)d .sum(LD)D .min(LA)A .max(LA)A .indexOf(LAA)i .lastIndexOf(LAA)i \
sets.contains(LALA)b sets.equivalent(LALA)b sets.intersects(LALA)b \
url(s)U isURL(s)b .getScheme(U)s .getHost(U)s .getHostname(U)s .getPort(U)s .getEscapedPath(U)s .getQuery(U)MsLs \
ip(s)P isIP(s)b ip.isCanonical(s)b .family(P)i .isUnspecified(P)b .isLoopback(P)b .isLinkLocalMulticast(P)b \
.isLinkLocalUnicast(P)b .isGlobalUnicast(P)b cidr(s)C isCIDR(s)b .containsIP(CP)b .containsIP(Cs)b .containsCIDR(CC)b \
.containsCIDR(Cs)b .ip(C)P .masked(C)C .prefixLength(C)i \
quantity(s)Q isQuantity(s)b .isInteger(Q)b .asInteger(Q)i .asApproximateFloat(Q)d .sign(Q)i .add(QQ)Q .add(Qi)Q .sub(QQ)Q \
.sub(Qi)Q .isLessThan(QQ)b .isGreaterThan(QQ)b .compareTo(QQ)i \
semver(s)V semver(sb)V isSemver(s)b isSemver(sb)b .major(V)i .minor(V)i .patch(V)i .isLessThan(VV)b .isGreaterThan(VV)b .compareTo(VV)i \
format.named(s)OF .validate(Fs)OLs format.dns1123Label()F format.dns1123Subdomain()F format.dns1035Label()F \
format.qualifiedName()F format.dns1123LabelPrefix()F format.dns1123SubdomainPrefix()F format.dns1035LabelPrefix()F \
format.labelValue()F format.uri()F format.uuid()F format.byte()F format.date()F format.datetime()F \
optional.of(A)OA optional.ofNonZeroValue(A)OA optional.none()OA .hasValue(OA)b .value(OA)A .orValue(OAA)A .or(OAOA)OA \
.getFullYear(T)i .getFullYear(Ts)i .getMonth(T)i .getMonth(Ts)i .getDate(T)i .getDate(Ts)i .getDayOfMonth(T)i .getDayOfMonth(Ts)i \
.getDayOfWeek(T)i .getDayOfWeek(Ts)i .getDayOfYear(T)i .getDayOfYear(Ts)i .getHours(T)i .getHours(Ts)i .getHours(D)i \
.getMinutes(T)i .getMinutes(Ts)i .getMinutes(D)i .getSeconds(T)i .getSeconds(Ts)i .getSeconds(D)i \
.getMilliseconds(T)i .getMilliseconds(Ts)i .getMilliseconds(D)i";
const ORDERED: [&str; 4] = ["_<_", "_<=_", "_>_", "_>=_"];
const COMPARED: [&str; 14] = ["bb", "ii", "uu", "dd", "ss", "yy", "TT", "DD", "iu", "id", "ui", "ud", "di", "du"];

/// The ways to call a function; empty when there is no such function.
pub fn overloads(name: &str) -> &'static [Overload] {
    static TABLE: LazyLock<HashMap<String, Vec<Overload>>> = LazyLock::new(|| {
        let ordered = ORDERED.iter().flat_map(|name| COMPARED.iter().map(move |types| format!("{name}({types})b")));
        let mut table: HashMap<String, Vec<Overload>> = HashMap::new();
        for text in FUNCTIONS.split_whitespace().map(str::to_owned).chain(ordered) {
            if let Some((name, overload)) = read(&text) {
                table.entry(name).or_default().push(overload);
            }
        }
        table
    });
    TABLE.get(name).map(Vec::as_slice).unwrap_or_default()
}

fn read(text: &str) -> Option<(String, Overload)> {
    let (name, rest) = text.split_once('(')?;
    let (takes, gives) = rest.rsplit_once(')')?;
    let (member, name) = name.strip_prefix('.').map_or((false, name), |name| (true, name));
    let mut letters = takes.bytes();
    let mut shapes = Vec::new();
    while letters.len() > 0 {
        shapes.push(shape(&mut letters)?);
    }
    Some((name.to_owned(), Overload { member, takes: shapes, gives: shape(&mut gives.bytes())? }))
}

fn shape(letters: &mut std::str::Bytes<'_>) -> Option<Shape> {
    let exact = |t: Type<'static>| Some(Shape::Exact(t));
    match letters.next()? {
        b'b' => exact(Type::Bool),
        b'i' => exact(Type::Int),
        b'u' => exact(Type::Uint),
        b'd' => exact(Type::Double),
        b's' => exact(Type::Text),
        b'y' => exact(Type::Bytes),
        b'D' => exact(Type::Duration),
        b'T' => exact(Type::Timestamp),
        b't' => exact(Type::OfTypes),
        b'*' => exact(Type::Dyn),
        b'U' => exact(Type::Named("kubernetes.URL")),
        b'P' => exact(Type::Named("net.IP")),
        b'C' => exact(Type::Named("net.CIDR")),
        b'Q' => exact(Type::Named("kubernetes.Quantity")),
        b'V' => exact(Type::Named("kubernetes.Semver")),
        b'F' => exact(Type::Named("kubernetes.NamedFormat")),
        letter @ (b'A' | b'B') => Some(Shape::Parameter(letter)),
        b'L' => Some(Shape::List(Box::new(shape(letters)?))),
        b'O' => Some(Shape::Optional(Box::new(shape(letters)?))),
        b'M' => Some(Shape::Map(Box::new(shape(letters)?), Box::new(shape(letters)?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        for text in FUNCTIONS.split_whitespace() {
            assert!(read(text).is_some(), "{text}");
        }
        assert_eq!(overloads("_<_").len(), COMPARED.len());
        assert_eq!(overloads("indexOf").len(), 3);
        assert!(overloads("nosuch").is_empty());
    }
}
