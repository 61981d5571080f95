import fc from "fast-check";
import { describe, expect, expectTypeOf, test } from "vitest";
import { type Scalar, struct, type ViewOf } from "../../src/uapi/index.ts";

const Point = struct("point", { x: "s32", y: "s32" });
const Shape = struct("shape", { kind: "u8", centre: Point, weights: ["u16", 3], area: "u64", label: ["u8", 4] });
const Path = struct("path", { count: "u32", points: [Point, "tail"] });
const Number64 = struct("number", { tag: "u8", whole: "s64", small: "u8", end: "u8" }, { union: ["whole", "small"] });

describe("layout", () => {
  test("every scalar is aligned to its own width, and the whole to the widest", () => {
    expect(Shape.offsets).toEqual({ kind: 0, centre: 4, weights: 12, area: 24, label: 32 });
    expect(Shape.widths).toEqual({ kind: 1, centre: 8, weights: 6, area: 8, label: 4 });
    expect([Shape.size, Shape.align]).toEqual([40, 8]);
  });

  test("a packed structure has no padding", () => {
    const packed = struct("packed", { a: "u8", b: "u64", c: "u16" }, { packed: true });
    expect(packed.offsets).toEqual({ a: 0, b: 1, c: 9 });
    expect([packed.size, packed.align]).toEqual([11, 1]);
    expect(packed.alloc({ b: 0x0102_0304_0506_0708n }).bytes).toEqual(new Uint8Array([0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]));
  });

  test("members of a union share an offset, and the next member follows the widest", () => {
    expect(Number64.offsets).toEqual({ tag: 0, whole: 8, small: 8, end: 16 });
    expect(Number64.size).toBe(24);
    expect(Number64.alloc({ whole: -2n }).small).toBe(0xfe);
  });

  test("a flexible array is no part of the size", () => {
    expect([Path.size, Path.sizeWith(3), Path.tailElementSize]).toEqual([4, 28, 8]);
    expect([Shape.tailElementSize, Shape.sizeWith(3)]).toEqual([0, Shape.size]);
  });

  test("endOf is the first byte after a member", () => {
    expect(Shape.endOf("weights")).toBe(18);
  });

  test("a declaration that C would refuse is refused", () => {
    expect(() => struct("s", { tail: ["u8", "tail"], after: "u8" })).toThrow(TypeError);
    expect(() => struct("s", { a: "u8", b: "u8", c: "u8" }, { union: ["a", "c"] })).toThrow(TypeError);
    expect(() => struct("s", { bytes: "u8" })).toThrow(TypeError);
  });

  test("any mix of scalars lies where a byte-by-byte search for the next aligned offset puts it", () => {
    const scalars: Scalar[] = ["u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64"];
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...scalars), { minLength: 1, maxLength: 12 }), (types) => {
        const made = struct("any", Object.fromEntries(types.map((type, i) => [`m${i}`, type])));
        let at = 0;
        for (const [i, type] of types.entries()) {
          const width = Number(type.slice(1)) / 8;
          while (at % width !== 0) at++;
          expect(made.offsets[`m${i}`]).toBe(at);
          at += width;
        }
        while (at % made.align !== 0) at++;
        expect(made.size).toBe(at);
      }),
    );
  });
});

describe("views", () => {
  test("members have the types that were declared", () => {
    type ShapeView = ViewOf<typeof Shape>;
    expectTypeOf<ShapeView["kind"]>().toEqualTypeOf<number>();
    expectTypeOf<ShapeView["area"]>().toEqualTypeOf<bigint>();
    expectTypeOf<ShapeView["label"]>().toEqualTypeOf<Uint8Array>();
    expectTypeOf<ShapeView["centre"]["x"]>().toEqualTypeOf<number>();
  });

  test("a nested structure is written through, not replaced", () => {
    const shape = Shape.alloc();
    expect(() => {
      // @ts-expect-error the member is read-only
      shape.centre = Point.alloc();
    }).toThrow(TypeError);
  });

  test("a new structure is zero but for what is given", () => {
    const shape = Shape.alloc({ kind: 2, centre: { y: -1 }, weights: [1, 2, 3], area: 1n << 63n, label: [65, 66] });
    expect(Shape.toObject(shape)).toEqual({
      kind: 2,
      centre: { x: 0, y: -1 },
      weights: [1, 2, 3],
      area: 1n << 63n,
      label: [65, 66, 0, 0],
    });
  });

  test("bytes are little endian and shared with the caller", () => {
    const bytes = new Uint8Array(12).fill(0xaa);
    const point = Point.over(bytes, 2);
    point.x = 0x0102_0304;
    point.y = -2;
    expect([...bytes]).toEqual([0xaa, 0xaa, 4, 3, 2, 1, 0xfe, 0xff, 0xff, 0xff, 0xaa, 0xaa]);
    bytes[2] = 5;
    expect(point.x).toBe(0x0102_0305);
    expect(point.bytes.length).toBe(Point.size);
  });

  test("a view of bytes which are themselves a part of a buffer starts where they start", () => {
    const part = new Uint8Array(32).subarray(8, 24);
    Point.over(part, 8).x = 7;
    expect(part[8]).toBe(7);
  });

  test("bytes that end inside the structure are refused", () => {
    expect(() => Point.over(new Uint8Array(7))).toThrow(RangeError);
    expect(() => Point.over(new Uint8Array(16), 9)).toThrow(RangeError);
    expect(() => Point.over(new Uint8Array(16), -1)).toThrow(RangeError);
  });

  test("a store keeps the low bits, as in C", () => {
    const shape = Shape.alloc();
    shape.kind = 0x1ff;
    shape.area = -1n;
    shape.weights.set(1, 0x1_2345);
    expect([shape.kind, shape.area, shape.weights.at(1)]).toEqual([0xff, 0xffff_ffff_ffff_ffffn, 0x2345]);
  });

  test("what is stored in a scalar of any width is read back, modulo its width and sign", () => {
    const every = { u8: "u8", u16: "u16", u32: "u32", u64: "u64", s8: "s8", s16: "s16", s32: "s32", s64: "s64" } as const;
    const Every = struct("every", every, { packed: true });
    fc.assert(
      fc.property(fc.bigInt({ min: -(1n << 63n), max: (1n << 64n) - 1n }), (value) => {
        const view = Every.alloc();
        for (const [field, type] of Object.entries(every)) {
          const bits = Number(type.slice(1));
          const stored = bits === 64 ? value : Number(BigInt.asIntN(32, value));
          Every.assign(view, { [field]: stored });
          const wide = bits === 64 ? value : BigInt.asIntN(32, value);
          const want = type.startsWith("s") ? BigInt.asIntN(bits, wide) : BigInt.asUintN(bits, wide);
          expect(BigInt(view[field as keyof typeof every])).toBe(want);
        }
      }),
    );
  });

  test("an array refuses an element that it does not have", () => {
    const { weights } = Shape.alloc();
    expect(() => weights.at(3)).toThrow(RangeError);
    expect(() => weights.at(-1)).toThrow(RangeError);
    expect(() => weights.set(0.5, 1)).toThrow(RangeError);
    expect(() => Shape.alloc({ weights: [1, 2, 3, 4] })).toThrow(RangeError);
    expect(() => Shape.alloc({ label: [1, 2, 3, 4, 5] })).toThrow(RangeError);
  });

  test("a member which is not there is refused", () => {
    expect(() => Point.alloc({ z: 1 } as object)).toThrow(TypeError);
  });

  test("a tail is as long as what it is given, or as asked for", () => {
    const path = Path.alloc({ count: 2, points: [{ x: 1 }, { y: 2 }] });
    expect(path.bytes.length).toBe(20);
    expect(Path.toObject(path)).toEqual({
      count: 2,
      points: [
        { x: 1, y: 0 },
        { x: 0, y: 2 },
      ],
    });
    expect(Path.alloc({ points: [] }, 3).points.length).toBe(3);
  });

  test("a tail over given bytes holds the whole elements that fit", () => {
    const path = Path.over(new Uint8Array(4 + 8 + 7));
    expect(path.points.length).toBe(1);
    path.points.set(0, { x: 9 });
    expect([...path.points].map((point) => point.x)).toEqual([9]);
  });

  test("a nested structure and an array of structures write through", () => {
    const shape = Shape.alloc();
    shape.centre.x = 3;
    shape.label.set([1, 2]);
    expect(shape.bytes[4]).toBe(3);
    expect([...shape.bytes.subarray(32, 36)]).toEqual([1, 2, 0, 0]);
  });
});
